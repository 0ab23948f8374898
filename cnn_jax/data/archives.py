"""Originals read where they lie: folders, tar (plain or compressed) and zip archives. Nothing is unpacked to the disk.

An archive's members are data from elsewhere: one whose name would leave the directory that it were unpacked to (`../`, an
absolute path), a link or a device is refused, since such an archive is not the one that it is taken for. So is one that ends
early: a tar that lost its last members looks whole to most readers.
"""

import contextlib
import hashlib
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

LARGEST_MEMBER = 1 << 30  # of an archive that is unpacked in memory; a bomb may declare any size
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True)
class Official:
    """An archive as its authors publish it: name, bytes, checksum ("sha256:..." or "md5:..."), and its address, if any."""

    filename: str
    num_bytes: int
    checksum: str
    url: str = ""


@dataclass(frozen=True)
class Entry:
    """One file: its name inside the archive or folder, its bytes by `read` (which threads may call), and its size.

    where: what an error calls it.
    """

    name: str
    num_bytes: int
    read: Callable[[], bytes] = field(repr=False)  # may hold them
    where: str


def entries(source: Path) -> Iterator[Entry]:
    """The files of a folder (all below it, in order of name) or of an archive (in its own order).

    Raises:
      FileNotFoundError: no such path. ValueError: neither folder nor archive, or damaged, or unsafe.
    """
    if source.is_dir():
        return folder_entries(source)
    check_exists(source)
    with _reading(source):
        if zipfile.is_zipfile(source):
            return _zip_entries(source)
    return tar_entries(source)


def is_picture(name: str) -> bool:
    """Whether a file is called as pictures are."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def check_exists(source: Path) -> None:
    """Raises FileNotFoundError where there is nothing at `source`."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; name the originals, a folder or an archive")


def folder_entries(folder: Path, prefix: str = "") -> Iterator[Entry]:
    """Every file below `folder`, by name; hidden ones are left out. Links are followed, but not round in circles.

    Raises ValueError for a link to nowhere, or what is no file (a pipe would be waited for); OSError for a folder below
    that cannot be read.
    """
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(root)
        if any(here.samefile(parent) for parent in here.parents if parent.is_relative_to(folder)):
            raise ValueError(f"{here}: a link leads back to a folder above it; remove it")
        for name in sorted(files):
            path = here / name
            if not name.startswith("."):
                inside = prefix + path.relative_to(folder).as_posix()
                yield Entry(inside, _size_of_file(path), path.read_bytes, in_one_line(path))


def in_one_line(name: Path | str) -> str:
    """A name as errors and tables can show it: what cannot be printed (line ends, bytes that are no text) as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(name))


def _raise(error: OSError) -> NoReturn:
    raise error


def _size_of_file(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"{in_one_line(path)} is a link to nowhere; remove it") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{in_one_line(path)} is no plain file; remove it")
    return status.st_size


def tar_entries(path: Path) -> Iterator[Entry]:
    """The files of a tar. Those of a plain one are read by place, so that skipping costs nothing; others, as they come."""
    with _reading(path), tarfile.open(path) as tar:
        is_plain = _is_plain(path)
        for member in _safe_members(tar, path, is_plain):
            where = f"{path}: {in_one_line(member.name)}"
            if is_plain:
                read = partial(_read_range, path, member.offset_data, member.size, where)
            else:
                _check_size(where, member.size)
                read = partial(_given, tar.extractfile(member).read())
            yield Entry(member.name, member.size, read, where)


def nested_tars(path: Path) -> Iterator[tuple[Entry, Callable[[], Iterator[Entry]]]]:
    """The members of a plain tar of plain tars, each with a function that gives its own entries."""
    with _reading(path), tarfile.open(path, "r:") as tar:
        for member in _safe_members(tar, path, is_plain=True):
            where = f"{path}: {in_one_line(member.name)}"
            read = partial(_read_range, path, member.offset_data, member.size, where)
            yield Entry(member.name, member.size, read, where), partial(_inner_entries, path, member)


def _inner_entries(path: Path, outer: tarfile.TarInfo) -> Iterator[Entry]:
    where = f"{path}: {outer.name}"
    with (
        _reading(where),
        tarfile.open(path, "r:") as tar,
        tarfile.open(fileobj=tar.extractfile(outer), mode="r:") as inner,
    ):
        for member in _safe_members(inner, where, is_plain=True):
            name = f"{where}: {in_one_line(member.name)}"
            read = partial(_read_range, path, outer.offset_data + member.offset_data, member.size, name)
            yield Entry(member.name, member.size, read, name)


def _safe_members(tar: tarfile.TarFile, archive: Path | str, is_plain: bool) -> Iterator[tarfile.TarInfo]:
    """The files of an open tar, each member checked; and after the last, that the archive ends as archives do."""
    while (member := tar.next()) is not None:
        tar.members = []  # or a million of them would be kept
        check_member(archive, member.name)
        if member.issym() or member.islnk():
            raise ValueError(
                f"{archive}: member {member.name!r} is a link to {member.linkname!r}: not the archive it is taken for"
            )
        if member.isfile() and not member.issparse():
            yield member
        elif not member.isdir():
            raise ValueError(
                f"{archive}: member {member.name!r} is neither file nor folder: not the archive it is taken for"
            )
    if is_plain:
        tar.fileobj.seek(tar.offset)
        if len(tar.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise ValueError(f"{archive} is cut short: it lacks the empty block that ends a tar; fetch it again")
    while not is_plain and tar.fileobj.read(1 << 20):
        pass  # up to the compressed stream's own checksum


def check_member(archive: Path | str, name: str) -> None:
    """Raises ValueError for a member whose name leads out of the directory that an archive is unpacked to."""
    if (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name)
        or ".." in PurePosixPath(name.replace("\\", "/")).parts
    ):
        raise ValueError(
            f"{archive}: member {name!r} leads out of the target directory; this archive is not to be trusted"
        )


def _zip_entries(path: Path) -> Iterator[Entry]:
    with _reading(path):
        archive = zipfile.ZipFile(path)
        for member in archive.infolist():
            check_member(path, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{path}: member {member.filename!r} is a link: not the archive it is taken for")
            if not member.is_dir():
                where = f"{path}: {in_one_line(member.filename)}"
                _check_size(where, member.file_size)
                yield Entry(member.filename, member.file_size, partial(_read_zip, archive, member, where), where)


def _check_size(where: str, num_bytes: int) -> None:
    if num_bytes > LARGEST_MEMBER:
        raise ValueError(f"{where} of {num_bytes:,} bytes is larger than any member of an archive of pictures")


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    with _reading(where):
        return archive.read(member)


def _is_plain(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512)[257:262] == b"ustar"


def _given(data: bytes) -> bytes:
    return data


def _read_range(path: Path, offset: int, size: int, where: str) -> bytes:
    with path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ValueError(f"{where}: the archive ends within it, it is cut short; fetch it again")
    return data


@contextlib.contextmanager
def _reading(archive: Path | str) -> Iterator[None]:
    """Turns what the readers raise of a damaged archive into one line that names it."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, not of the archive
        why = next(iter(str(error).splitlines()), "it ends early")
        raise ValueError(f"{archive} is no whole tar or zip archive ({why}); fetch it again") from None


def as_published(path: Path, officials: tuple[Official, ...]) -> Official | None:
    """Which published archive a file is meant to be: by its name, or else by its size."""
    size = path.stat().st_size
    by_name = [official for official in officials if official.filename == path.name]
    return next(
        (official for official in (*by_name, *officials) if official in by_name or official.num_bytes == size), None
    )


def check_official(path: Path, official: Official, advance: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Raises ValueError unless the file has the published checksum. `advance` is told of the bytes read, as they are."""
    algorithm, _, expected = official.checksum.partition(":")
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path} has the size of {official.filename}, but {algorithm} {digest.hexdigest()} instead of {expected}: "
            "it is damaged, fetch it again"
        )
