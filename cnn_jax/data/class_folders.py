"""Pictures in one folder for each class, which gives the class its name."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cnn_jax.data.archives import Entry, folder_entries, is_picture
from cnn_jax.data.progress import ProgressLine

WNID = re.compile(r"n\d{8}")
Examples = Iterable[tuple[Entry, int]]


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders in `folder`, by name; hidden ones are no classes.

    Raises ValueError: none, or only one, or a name that no list of names can hold.
    """
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        found = f"only one class, {names[0]}" if names else "no class folders"
        raise ValueError(f"{folder} holds {found}; it must hold a folder of pictures for each of two classes or more")
    unprintable = next((name for name in names if not name.isprintable()), None)
    if unprintable is not None:
        raise ValueError(f"{folder} holds a class folder {unprintable!r}, a name that cannot be listed; rename it")
    return names


def check_wnid(name: str, where: Path | str) -> None:
    """Raises ValueError for a class of an ImageNet that has not the name of one."""
    if not WNID.fullmatch(name):
        raise ValueError(f"{where}: {name!r} is no WordNet number such as n01440764: this is another data set")


def examples(folder: Path, labels: Mapping[str, int], prefix: str = "") -> Iterator[tuple[Entry, int]]:
    """(entry, label) of every picture in the class folders that `labels` numbers, in order of label and name.

    prefix: before a picture's name, which else begins with its class. Other files than pictures are passed over.

    Raises ValueError: a class folder without pictures.
    """
    for name, label in sorted(labels.items(), key=lambda item: item[1]):
        if not (folder / name).is_dir():
            continue  # a split need not have every class
        number = 0
        for entry in folder_entries(folder / name, f"{prefix}{name}/"):
            if is_picture(entry.name):
                number += 1
                yield entry, label
        if not number:
            raise ValueError(f"{folder / name} holds no pictures; remove it, or fill it")


def check_known(folder: Path, labels: Mapping[str, int], train: Path) -> None:
    """Raises ValueError for a class folder that train does not have."""
    unknown = sorted(set(class_names(folder)) - labels.keys())
    if unknown:
        raise ValueError(f"{folder / unknown[0]}: {train} has no such class; the splits must have the same classes")


def survey(pairs: Examples) -> tuple[int, str]:
    """(bytes of all files, a digest of their names, sizes and labels): what a preparation is known by."""
    digest = hashlib.sha256()
    with ProgressLine("listing the originals", 0, "images") as progress:  # of a million on a slow disk, minutes
        for entry, label in pairs:
            digest.update(f"{label} {entry.num_bytes} {entry.name}\n".encode(errors="surrogateescape"))
            progress.advance(entry.num_bytes)
    return progress.num_bytes, digest.hexdigest()
