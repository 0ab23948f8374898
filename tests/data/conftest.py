"""Two prepared sets: one of ours, of several shards, and one as TFDS prepares its own."""

import pytest
import tensorflow_datasets as tfds

from cnn_jax.data import prepare, shards
from cnn_jax.data.builders import make_builder
from tests.data.originals import FILES, tried


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    return prepare.prepare(make_builder(tried(), data_dir=tmp_path)).path


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """As TFDS prepares a set of its own: shuffled, and without our two files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "tried", tfds.core.Version("3.0.1")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(7)), "test": self._generate_examples(range(7, 9))}

        def _generate_examples(self, part):
            for i in part:
                yield i, {"image": FILES[i], "label": i % 2}

    builder = Builder(data_dir=str(tmp_path / "theirs"))
    builder.download_and_prepare(file_format="array_record")
    return tmp_path / "theirs" / "tried" / "3.0.1"
