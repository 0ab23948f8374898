"""ImageNet, ILSVRC 2012: 1,000 classes, 1,281,167 training and 50,000 validation pictures.

Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 115, 2015,
https://arxiv.org/abs/1409.0575. https://image-net.org/download-images gives the archives to who registers; no program can.

    ./launch.sh prepare imagenet --source=SOURCE --dir=DIR [--short_side=256]

SOURCE is a folder that holds, of each line, one:
    ILSVRC2012_img_train.tar                        or train/<wnid>/*.JPEG
    ILSVRC2012_img_val.tar or val/*.JPEG            or val/<wnid>/*.JPEG, which need no list
    ILSVRC2012_devkit_t12.tar.gz (or unpacked)      or one *val*.txt, a wnid a line, in order of the pictures' names
Classes are the wnids of train, sorted, as everybody numbers them; the devkit has their names. Boxes are passed over.

Splits of a run: test is the official validation, on which papers report; validation is `config.num_validation` of train, in
proportion to the classes and the same for every run (10,000 leave what papers train on, but for a hundredth). A directory of
TFDS's own imagenet2012 in array_record form is read as well.
"""

import io
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.data.archives import Entry, Official, as_published, entries, folder_entries, is_picture, nested_tars
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.class_folders import check_wnid, class_names, examples, survey
from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.encoded_sets import make_encoded_source

# Sizes and checksums of the tars as tensorflow-datasets 4.9.10 records them; of the devkit recalled, as torchvision has it.
TRAIN = Official(
    "ILSVRC2012_img_train.tar",
    147897477120,
    "sha256:b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
)
VALIDATION = Official(
    "ILSVRC2012_img_val.tar", 6744924160, "sha256:c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"
)
DEVKIT = Official("ILSVRC2012_devkit_t12.tar.gz", 2568145, "md5:fa75699e90414af021442c21a62c3abf")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DOWNLOADS = ()
WHERE_TO_GET = (
    f"register at https://image-net.org and fetch {TRAIN.filename}, {VALIDATION.filename} and {DEVKIT.filename}"
)
CHANNELS, NUM_CLASSES = 3, 1000
Pairs = Callable[[], Iterator[tuple[Entry, int]]]


def known_classes() -> tuple[str, ...]:
    """The wnids in the order of labels, as TFDS's package lists them: without the data, and so without the words."""
    package = find_spec("tensorflow_datasets").submodule_search_locations[0]  # imports nothing: that takes a second
    return tuple((Path(package) / "datasets" / "imagenet2012" / "labels.txt").read_text().split())


def make_source(config: ConfigDict, split: str) -> EncodedSource:
    """The picture files of one split; fields and errors of `encoded_sets.make_encoded_source`."""
    return make_encoded_source(config, split, "imagenet", ("imagenet2012",), official={"test": "validation"})


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_imagenet` of the originals in the folder `source`, with splits train and validation.

    Raises ValueError, naming the file: another data set's archive or list, as many classes as pictures are not given, or a
    validation picture of a class that train lacks. FileNotFoundError: train, validation or its labels are not there.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; name the one that holds {TRAIN.filename} and the others")
    wnids, train = _train(source)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    synsets, truth = _devkit(source)
    validation, listed = _validation(source, labels, synsets, truth)
    words = dict(synsets.values())
    archives = [(path, as_published(path, (official,))) for path, official in _archives(source)]
    surveys = {"validation": survey(validation())}
    if (source / "train").is_dir():
        surveys["train"] = survey(train())
    else:  # the size is enough: reading a million headers off a slow disk takes long
        size = (source / TRAIN.filename).stat().st_size
        surveys["train"] = size, f"{TRAIN.filename} {size}"
    return make_builder(
        Originals(
            name="imagenet",
            title="ImageNet, ILSVRC 2012",
            source=str(source),
            classes=wnids,
            words=tuple(words.get(wnid, wnid) for wnid in wnids),
            splits={"train": train, "validation": validation},
            num_bytes={split: num_bytes for split, (num_bytes, _) in surveys.items()},
            fingerprint=" ".join(digest for _, digest in surveys.values()) + f" {listed}",
            homepage="https://image-net.org",
            citation='O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV, 2015',
            archives=tuple(archives),
        ),
        data_dir=data_dir,
        short_side=short_side,
    )


def _archives(source: Path) -> list[tuple[Path, Official]]:
    """The archives in `source` that are read: a folder that stands for one goes before it."""
    folders = {TRAIN: "train", VALIDATION: "val", DEVKIT: "ILSVRC2012_devkit_t12"}
    return [
        (source / official.filename, official)
        for official, folder in folders.items()
        if (source / official.filename).is_file() and not (source / folder).is_dir()
    ]


def _train(source: Path) -> tuple[tuple[str, ...], Pairs]:
    """The wnids, sorted, and the training pictures."""
    folder, tar = source / "train", source / TRAIN.filename
    if folder.is_dir():
        wnids = class_names(folder)
        for wnid in wnids:
            check_wnid(wnid, folder / wnid)
        return wnids, partial(examples, folder, {wnid: label for label, wnid in enumerate(wnids)})
    if not tar.is_file():
        raise FileNotFoundError(f"{source} holds neither {TRAIN.filename} nor train/; {WHERE_TO_GET}")
    inner = {}
    for entry, members in nested_tars(tar):
        wnid = entry.name.removesuffix(".tar")
        check_wnid(wnid, entry.where)
        inner[wnid] = members
    if len(inner) < 2:
        raise ValueError(f"{tar} holds {len(inner)} classes; it must hold a tar for each of two or more")
    return tuple(sorted(inner)), partial(_of_tars, inner)


def _of_tars(inner: dict[str, Callable[[], Iterator[Entry]]]) -> Iterator[tuple[Entry, int]]:
    for label, wnid in enumerate(sorted(inner)):
        is_empty = True
        for entry in inner[wnid]():
            is_empty = False
            yield entry, label
        if is_empty:
            raise ValueError(f"{TRAIN.filename}: {wnid}.tar holds no pictures; fetch it again")


def _validation(
    source: Path, labels: dict[str, int], synsets: dict[int, tuple[str, str]], truth: list[int]
) -> tuple[Pairs, str]:
    """The validation pictures, in order of their names, and what their labels were read from."""
    folder, tar = source / "val", source / VALIDATION.filename
    if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
        for name in class_names(folder):
            check_wnid(name, folder / name)
        return partial(_labelled, partial(folder_entries, folder), labels, None), "class folders"
    if not folder.is_dir() and not tar.is_file():
        raise FileNotFoundError(f"{source} holds neither {VALIDATION.filename} nor val/; {WHERE_TO_GET}")
    lists = sorted(path for path in source.glob("*val*.txt") if path.name != TRUTH)
    if truth and synsets:
        wnids, where = [synsets[number][0] for number in truth], DEVKIT.filename
    elif len(lists) == 1:
        wnids, where = lists[0].read_text(errors="replace").split(), lists[0].name
        for wnid in wnids:
            check_wnid(wnid, lists[0])
    else:
        found = f"several lists ({', '.join(path.name for path in lists)})" if lists else "no labels"
        raise FileNotFoundError(
            f"{source} holds {found} for the validation pictures; it needs {DEVKIT.filename}, one *val*.txt with a wnid "
            "a line, or val/ sorted into class folders"
        )
    place = folder if folder.is_dir() else tar
    return partial(_labelled, partial(entries, place), labels, wnids), f"{where} {' '.join(wnids)}"


def _labelled(
    files: Callable[[], Iterator[Entry]], labels: dict[str, int], wnids: list[str] | None
) -> Iterator[tuple[Entry, int]]:
    """Pictures by name; their classes by `wnids`, or by the folder that each lies in."""
    pictures = sorted((entry for entry in files() if is_picture(entry.name)), key=lambda entry: entry.name)
    if wnids is not None and len(wnids) != len(pictures):
        raise ValueError(
            f"{pictures[0].where if pictures else 'val'}: {len(pictures):,} pictures, but labels for {len(wnids):,}"
        )
    for i, entry in enumerate(pictures):
        wnid = wnids[i] if wnids is not None else PurePosixPath(entry.name).parts[0]
        if wnid not in labels:
            raise ValueError(f"{entry.where}: its class {wnid} is not among the {len(labels):,} of train")
        yield entry, labels[wnid]


def _devkit(source: Path) -> tuple[dict[int, tuple[str, str]], list[int]]:
    """The (wnid, words) of each ILSVRC2012_ID, and the validation pictures' numbers; {} and [] where there is no devkit."""
    tar, places = source / DEVKIT.filename, [source, source / "ILSVRC2012_devkit_t12"]
    files = list(entries(tar)) if tar.is_file() else [e for place in places if place.is_dir() for e in _shallow(place)]
    found = {PurePosixPath(entry.name).name: entry for entry in files}
    if META not in found:
        return {}, []
    from scipy.io import loadmat

    try:
        rows = loadmat(io.BytesIO(found[META].read()), squeeze_me=True)["synsets"]
        synsets = {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows}
        truth = [int(line) for line in found[TRUTH].read().split()] if TRUTH in found else []
        unknown = next((number for number in truth if number not in synsets), None)
    except Exception as error:  # SciPy raises many things of a damaged file
        raise ValueError(f"{found[META].where} is not the devkit's ({error}); fetch {DEVKIT.filename} again") from None
    if unknown is not None:
        raise ValueError(f"{found[TRUTH].where} names class {unknown}, which {META} does not have")
    return synsets, truth


def _shallow(folder: Path) -> list[Entry]:
    """The files in a folder and in its data/."""
    places = [path for place in (folder, folder / "data") if place.is_dir() for path in place.iterdir()]
    return [Entry(path.name, path.stat().st_size, path.read_bytes, str(path)) for path in places if path.is_file()]
