"""Where a data set was prepared: what `config.data.dir` leads to.

It is the <dir> of prepared.py, or any of the directories below it down to the version's own: needed where one set was
prepared in several ways.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from cnn_jax.data.prepared import INFO, PREFIX, VERSION, read_json

UNFINISHED = ".incomplete"
VERSION_NAME = re.compile(r"\d+\.\d+\.\d+")


def find_prepared(data_dir: str, dataset: str, tfds_names: Sequence[str] | None = ()) -> Path:
    """The version's directory of a data set that was prepared under `data_dir`.

    dataset: as in `prepare DATASET`. tfds_names: what TFDS calls its own build of it; None: any set serves, where data_dir
    is its version's directory.

    Raises, in one line that says what to do:
      ValueError: an empty data_dir, several preparations to choose from, one of another version, or another set.
      FileNotFoundError: none, or one that is not finished. PermissionError: it cannot be looked for.
    """
    root = Path(data_dir).expanduser()
    is_version = bool(data_dir) and (root / INFO).is_file()
    where = "DIR" if is_version or not data_dir else shlex.quote(data_dir)
    command = f"./launch.sh prepare {dataset} --source=PATH --dir={where}"
    if not data_dir:
        raise ValueError(f"config.data.dir is empty: set --config.data.dir=DIR, where the set was prepared ({command})")
    if is_version:
        if root.name.endswith(UNFINISHED):
            raise _unfinished(root, command)
        return _checked(root, command, None if tfds_names is None else (PREFIX + dataset, *tfds_names))
    tfds_names = tfds_names or ()
    names = PREFIX + dataset, *tfds_names
    bases = {name: root if name in (root.name, root.parent.name) else root / name for name in names}
    for name, base in bases.items():
        found = [path for path in _described(base) if VERSION_NAME.fullmatch(path.name)]
        if not found:
            continue
        if name in tfds_names:  # the newest of those in one place
            found = [
                max((p for p in found if p.parent == parent), key=_version)
                for parent in sorted({p.parent for p in found})
            ]
        elif any(path.name == VERSION for path in found):
            found = [path for path in found if path.name == VERSION]
        if len(found) > 1:
            raise ValueError(
                f"{base} holds {len(found)} preparations: set --config.data.dir to one of {', '.join(map(str, found))}"
            )
        return _checked(found[0], command)
    partial = next(bases[PREFIX + dataset].glob(f"**/*{UNFINISHED}"), None)
    if partial is not None:
        raise _unfinished(partial, command)
    raise FileNotFoundError(f"{root} holds no prepared {dataset}; this prepares it: {command}")


def _described(base: Path, depth: int = 2) -> list[Path]:
    """The directories at most so deep below `base` that have a description. (`Path.glob` would pass over closed ones.)"""
    if not base.is_dir():
        return []
    found = []
    for path in sorted(base.iterdir()):
        if (path / INFO).is_file():
            found.append(path)
        elif depth > 1:
            found += _described(path, depth - 1)
    return found


def _unfinished(path: Path, command: str) -> FileNotFoundError:
    return FileNotFoundError(f"{path} was not finished: the command that began it goes on from there ({command})")


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in path.name.split("."))


def _age(version: str) -> str:
    if not VERSION_NAME.fullmatch(version):
        return "an unknown"
    return "an older" if _version(Path(version)) < _version(Path(VERSION)) else "a newer"


def _checked(path: Path, command: str, names: Sequence[str] | None = None) -> Path:
    """The directory, found to be of this version, in a format that is read here, and of a set of one of these names."""
    info = read_json(path / INFO)
    if names is not None and info.get("name") not in names:
        raise ValueError(
            f"{path} holds {info.get('name')}, another data set than {names[0].removeprefix(PREFIX)}; --config.data.name="
            "data.image_folder reads whatever set of pictures it is"
        )
    version = str(info.get("version"))
    if str(info.get("name")).startswith(PREFIX) and version != VERSION:
        raise ValueError(
            f"{path} was prepared by {_age(version)} version ({version}; this one reads {VERSION}): prepare it anew "
            f"({command})"
        )
    if info.get("fileFormat", "tfrecord") != "array_record":
        raise ValueError(
            f"{path} holds {info.get('fileFormat', 'tfrecord')} files, which only TensorFlow reads; where it is installed, "
            f"convert them: python -m tensorflow_datasets.scripts.convert_format --dataset_version_dir={path} "
            f"--out_file_format=array_record --out_dir=OUT; or prepare it anew: {command}"
        )
    return path
