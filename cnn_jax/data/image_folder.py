"""Pictures of your own: a folder for each class, JPEG, PNG, WebP or GIF of any sizes.

    SOURCE/train/<class>/..., SOURCE/val/<class>/... [, SOURCE/test/<class>/...]      splits as they are
    SOURCE/<class>/...                                                               splits drawn for you

`val` may be called `validation` or `valid`. Pictures may lie in folders below a class; they are turned upright as EXIF says.

    ./launch.sh prepare image_folder --source=SOURCE --dir=DIR [--short_side=N]

writes DIR/cnn_jax_image_folder/<SOURCE's name>[_short_side_N]/1.0.0; with more than one there, config.data.dir must name it.
Any TFDS directory of array_record files with features `image` and `label` is read, too, where config.data.dir is its
version's directory.

Splits of a run: as they are, where there are three. Beside train one more is `test`, as for ImageNet: the best checkpoint is
chosen on `config.num_validation` pictures held out of train, so that test decides nothing. Without either, `config.num_test`
are held out for test. All are drawn in proportion to the classes, the same for every run.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.data.archives import folder_entries, is_picture
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.class_folders import check_known, class_names, examples, survey
from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.encoded_sets import make_encoded_source

DOWNLOADS = ()
CHANNELS = 3
WHERE_TO_GET = "it is your own folder"
FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def make_source(config: ConfigDict, split: str) -> EncodedSource:
    """The picture files of one split; fields and errors of `encoded_sets.make_encoded_source`."""
    return make_encoded_source(config, split, "image_folder", None)


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_image_folder/<name of source>` of the pictures in `source`.

    Raises ValueError: no folder, fewer than two classes, a class without pictures, or a split's class that train lacks.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; name one that holds a folder of pictures for each class")
    folders = {split: source / name for split, names in FOLDERS.items() for name in names if (source / name).is_dir()}
    if "train" not in folders:
        if folders:
            raise ValueError(f"{source} has {', '.join(path.name for path in folders.values())}, but no train folder")
        folders = {"train": source}
    classes = class_names(folders["train"])
    labels = {name: label for label, name in enumerate(classes)}
    for folder in folders.values():
        check_known(folder, labels, folders["train"])
    splits = {
        split: partial(examples, folder, labels, "" if folder == source else f"{folder.name}/")
        for split, folder in folders.items()
    }
    surveys = {split: survey(pairs()) for split, pairs in splits.items()}
    others = [
        entry.where for folder in folders.values() for entry in folder_entries(folder) if not is_picture(entry.name)
    ]
    notes = (f"{len(others):,} files that are no pictures are passed over, e.g. {others[0]}",) if others else ()
    return make_builder(
        Originals(
            name="image_folder",
            title=f"The pictures of {source.name}",
            source=str(source),
            classes=classes,
            splits=splits,
            num_bytes={split: num_bytes for split, (num_bytes, _) in surveys.items()},
            fingerprint=" ".join(f"{split} {digest}" for split, (_, digest) in surveys.items()),
            notes=notes,
            upright=True,
            config=re.sub(r"\W+", "_", source.name) or "pictures",
        ),
        data_dir=data_dir,
        short_side=short_side,
    )
