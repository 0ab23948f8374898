"""Archives from the net: resumed where they were left off, checked against the published checksum, whole or not at all."""

import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cnn_jax.data.archives import Official, check_official
from cnn_jax.data.progress import ProgressLine

CHUNK = 1 << 18
TIMEOUT_S = 30.0


def download(official: Official, folder: Path, poll: Callable[[], None] = lambda: None) -> Path:
    """The archive in `folder`, fetched unless it is there. What has come of it rests in FILENAME.partial until it is whole.

    poll is called between pieces, and may raise to stop.

    Raises:
      OSError: no network, or no room. ValueError: what came has another checksum; it is removed.
    """
    path = folder / official.filename
    if path.exists():
        return path
    partial = path.with_name(path.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}); name another --dir") from None
    have = partial.stat().st_size if partial.exists() else 0
    if have > official.num_bytes:  # of something else
        partial.unlink()
        have = 0
    if official.num_bytes - have > room:
        raise OSError(f"{folder}: {official.filename} needs {official.num_bytes:,} bytes, {room + have:,} are free")
    try:
        _fetch(official, partial, have, poll)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise OSError(
            f"cannot fetch {official.url} ({reason}); the same command goes on from what has come, "
            f"or fetch {official.filename} elsewhere and name it: --source=PATH"
        ) from None
    if partial.stat().st_size != official.num_bytes:
        raise OSError(
            f"{official.url} gave {partial.stat().st_size:,} of {official.num_bytes:,} bytes; "
            "the same command goes on from there"
        )
    try:
        check_official(partial, official)
    except ValueError:
        partial.unlink()
        raise ValueError(
            f"{official.url} gave other contents than published ({official.checksum}); removed, try again, "
            "or fetch it elsewhere and name it: --source=PATH"
        ) from None
    return partial.rename(path)


def _fetch(official: Official, partial: Path, have: int, poll: Callable[[], None]) -> None:
    """Appends to `partial` what it lacks."""
    if have >= official.num_bytes:
        return
    request = urllib.request.Request(official.url, headers={"Range": f"bytes={have}-", "User-Agent": "cnn_jax"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        resumes = response.status == http.client.PARTIAL_CONTENT  # else the server sends all of it anew
        missing = official.num_bytes - have * resumes
        with (
            partial.open("ab" if resumes else "wb") as file,
            ProgressLine(f"fetching {official.filename}", missing) as progress,
        ):
            while chunk := response.read(CHUNK):
                poll()
                file.write(chunk)
                progress.advance(len(chunk))
