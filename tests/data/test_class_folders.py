import functools
import os

import pytest

from cnn_jax.data import class_folders
from cnn_jax.data.class_folders import check_known, class_names, examples, survey
from cnn_jax.data.progress import ProgressLine
from tests.data.originals import write

FILES = {"b/2.jpg": "b2", "b/1.PNG": "b1", "a/deep/x.webp": "ax", "a/notes.txt": "no picture", ".git/c.jpg": "hidden"}


def test_classes_and_examples_in_order(tmp_path):
    folder = write(tmp_path, FILES)
    assert class_names(folder) == ("a", "b")
    found = list(examples(folder, {"b": 0, "a": 1, "absent": 2}, "train/"))
    assert [(entry.name, entry.read(), label) for entry, label in found] == [
        ("train/b/1.PNG", b"b1", 0),
        ("train/b/2.jpg", b"b2", 0),
        ("train/a/deep/x.webp", b"ax", 1),
    ]


def test_no_class_and_one_class_only_are_errors(tmp_path):
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no class folders; it must hold a folder of pictures for each"
    ):
        class_names(tmp_path)
    write(tmp_path, {"a/1.jpg": "x", "loose.jpg": "x"})
    with pytest.raises(ValueError, match="holds only one class, a; it must hold"):
        class_names(tmp_path)


@pytest.mark.parametrize("name", [b"c\xffd", b"c\nd"])
def test_a_class_must_have_a_name_that_can_be_listed(tmp_path, name):
    write(tmp_path, {"a/1.jpg": "x", "b/1.jpg": "x", f"{os.fsdecode(name)}/1.jpg": "x"})
    with pytest.raises(ValueError, match=r"holds a class folder '.*', a name that cannot be listed; rename it"):
        class_names(tmp_path)


@pytest.mark.parametrize("files", [{"b/readme.txt": "x"}, {"b/.hidden.jpg": "x"}])
def test_a_class_without_pictures_is_an_error(tmp_path, files):
    folder = write(tmp_path, {"a/1.jpg": "x"} | files)
    with pytest.raises(ValueError, match=f"{folder / 'b'} holds no pictures; remove it, or fill it"):
        list(examples(folder, {"a": 0, "b": 1}))


def test_a_class_that_train_lacks_is_an_error(tmp_path):
    write(tmp_path, {"val/a/1.jpg": "x", "val/new/1.jpg": "x"})
    with pytest.raises(ValueError, match=rf"val/new: {tmp_path}/train has no such class"):
        check_known(tmp_path / "val", {"a": 0, "b": 1}, tmp_path / "train")
    check_known(tmp_path / "val", {"a": 0, "new": 1, "b": 2}, tmp_path / "train")


def test_a_survey_tells_one_set_from_another(tmp_path):
    def surveyed(files, labels):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return survey(examples(write(folder, files), labels))

    files, labels = {"a/1.jpg": "xx", "b/1.jpg": "yyy"}, {"a": 0, "b": 1}
    num_bytes, digest = surveyed(files, labels)
    assert num_bytes == 5 and surveyed(files, labels) == (5, digest)
    others = [
        surveyed({"a/1.jpg": "xx", "b/2.jpg": "yyy"}, labels),
        surveyed({"a/1.jpg": "xxx", "b/1.jpg": "yy"}, labels),
        surveyed(files, {"a": 1, "b": 0}),
    ]
    assert len({digest, *(other for _, other in others)}) == 4


def test_a_long_survey_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(class_folders, "ProgressLine", functools.partial(ProgressLine, every_s=0))
    folder = write(tmp_path, {"a/1.jpg": "xx", "b/1.jpg": "yyy"})
    assert survey(examples(folder, {"a": 0, "b": 1}))[0] == 5
    assert [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["listing the originals", "1 images"],
        ["listing the originals", "2 images"],
    ]
