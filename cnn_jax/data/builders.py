"""TFDS builders of our own: from what a data set's module found of its originals to examples, without TensorFlow.

A data set with originals has a function

    builder(source, *, data_dir, short_side=None) -> TFDS builder       source: a folder or an archive of originals

which describes what it finds as `Originals` and calls `make_builder`. The builder is of TFDS's own kind, so that
`builder.download_and_prepare(file_format="array_record")` works, within TFDS's means: it holds a split in memory, up to a
gigabyte. `prepare.py` writes larger ones. Our names begin with "cnn_jax_" and shadow none of TFDS's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.data.archives import Entry, Official, in_one_line
from cnn_jax.data.prepared import PREFIX, VERSION
from cnn_jax.data.reencode import REDUCED_QUALITY, stored_form


@dataclass(frozen=True)
class Originals:
    """What a data set's module found.

    name, title, homepage, citation: of the set. source: where it lies.
    classes: TFDS's names, by label. words: what people call them, or ().
    splits: by TFDS's name, a function that gives each (entry, label), in a fixed order. num_bytes: of a split's entries.
    fingerprint: another for other originals.
    image_shape: of every picture, whose entries are then PNG; (None, None, 3): files of any size and form.
    archives: those that are read, each with what is published of it, if anything. notes: lines for the user.
    upright: turn pictures as their EXIF orientation says. config: TFDS's name of this variety of the set, or "".
    """

    name: str
    title: str
    source: str
    classes: tuple[str, ...]
    splits: Mapping[str, Callable[[], Iterable[tuple[Entry, int]]]]
    num_bytes: Mapping[str, int]
    fingerprint: str
    homepage: str = ""
    citation: str = ""
    words: tuple[str, ...] = ()
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)
    archives: tuple[tuple[Path, Official | None], ...] = ()
    notes: tuple[str, ...] = ()
    upright: bool = False
    config: str = ""

    @property
    def of_any_size(self) -> bool:
        return self.image_shape[0] is None


def make_builder(originals: Originals, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder of these originals, under `data_dir`. Raises ValueError for a short_side that they cannot have."""
    import tensorflow_datasets as tfds

    if short_side is not None and short_side < 1:
        raise ValueError(f"--short_side={short_side} must be at least 1")
    if short_side is not None and not originals.of_any_size:
        raise ValueError(f"--short_side={short_side}: the pictures of {originals.name} are all {originals.image_shape}")
    variety = "_".join(filter(None, (originals.config, f"short_side_{short_side}" if short_side else "")))
    text = in_one_line(f"{originals.title}. Prepared by cnn_jax from {originals.source}")
    if short_side:
        text += f"; short sides above {short_side} reduced to it, as JPEG of quality {REDUCED_QUALITY} (PNG stays PNG)"

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Nothing: TFDS's bucket does not know this set."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = PREFIX + originals.name
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=variety, description=text)] if variety else []

        def __init__(self, **options: Any):
            self.originals, self.short_side = originals, short_side
            super().__init__(**options)

        def _info(self) -> Any:
            if originals.of_any_size:
                features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
            else:
                features = {"image": tfds.features.Image(shape=originals.image_shape, encoding_format="png")}
            features["label"] = tfds.features.ClassLabel(names=list(originals.classes))
            return Info(
                builder=self,
                description=text,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=originals.homepage,
                citation=originals.citation,
                disable_shuffling=True,  # a reader by index takes them in the order it likes
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in originals.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (entry, label) in enumerate(originals.splits[split]()):
                yield i, self.example(entry, label, self.stored(entry))

        def stored(self, entry: Entry) -> bytes:
            """The picture file as it is stored."""
            data = entry.read()
            if not originals.of_any_size:
                return data
            return stored_form(data, entry.where, short_side=short_side, upright=originals.upright)

        def example(self, entry: Entry, label: int, stored: bytes) -> dict[str, Any]:
            """An example by feature."""
            name = entry.name.encode(errors="backslashreplace")  # what is no text in the file system's encoding
            return {"image": stored, "label": label} | ({"file_name": name.decode()} if originals.of_any_size else {})

    return Builder(data_dir=str(data_dir.expanduser().absolute()), config=variety or None)
