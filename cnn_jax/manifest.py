"""A checkpoint's manifest: what it holds, and the size and sha256 of each of its files, so that damage is told.

{"step", "score", "leaves", "files": {relative path: [bytes, sha256]}}
sha256 of the line before
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST"


class DamageError(Exception):
    """What is wrong with one checkpoint, in a few words."""


def write_manifest(path: Path, step: int, score: float | None, leaves: Mapping[str, list[Any]]) -> None:
    """Writes the manifest of the folder `path` over all the files that are in it, in one piece."""
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        files[file.relative_to(path).as_posix()] = [file.stat().st_size, digest]
    body = json.dumps({"step": step, "score": score, "leaves": leaves, "files": files})
    temporary = path / f"{MANIFEST}.tmp"
    temporary.write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
    temporary.replace(path / MANIFEST)


def read_manifest(path: Path, step: int) -> dict[str, Any]:
    """The manifest of `path`. Raises DamageError where it is missing, altered, or of another step."""
    try:
        body, _, digest = (path / MANIFEST).read_bytes().partition(b"\n")
    except OSError as error:
        raise DamageError(f"{MANIFEST} cannot be read: {error.strerror}") from error
    if digest != f"{hashlib.sha256(body).hexdigest()}\n".encode():
        raise DamageError(f"{MANIFEST} does not match its own sha256")
    manifest = json.loads(body)
    if manifest["step"] != step:
        raise DamageError(f"{MANIFEST} is that of step {manifest['step']}")
    return manifest


def verify(path: Path, step: int, folder: str = "") -> dict[str, Any]:
    """The manifest, once every file in `folder` has the size and sha256 that it says. Raises DamageError."""
    manifest = read_manifest(path, step)
    for name, (size, digest) in manifest["files"].items():
        if not name.startswith(folder):
            continue
        try:
            with (path / name).open("rb") as f:
                actual = os.fstat(f.fileno()).st_size
                if actual != size:
                    raise DamageError(f"{name} has {actual} bytes instead of {size}")
                if hashlib.file_digest(f, "sha256").hexdigest() != digest:
                    raise DamageError(f"{name} does not match its sha256")
        except OSError as error:
            raise DamageError(f"{name} cannot be read: {error.strerror}") from error
    return manifest
