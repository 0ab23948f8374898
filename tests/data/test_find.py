"""Where a set was prepared: found from any directory above it, and what is wrong with one, in one line."""

import json
import os
import shutil

import pytest

from cnn_jax.data import prepare
from cnn_jax.data.builders import make_builder
from cnn_jax.data.find import find_prepared
from tests.data.originals import tried


def refuses(message, data_dir, error=ValueError, names=()):
    with pytest.raises(error, match=message) as caught:
        find_prepared(str(data_dir), "tried", names)
    assert "\n" not in str(caught.value)


def test_found_from_any_directory_above(path):
    for directory in (path.parent.parent, path.parent, path):
        assert find_prepared(str(directory), "tried") == path


def test_of_several_tfds_versions_the_newest(foreign):
    for version in ("3.0.0", "10.0.0"):
        shutil.copytree(foreign, foreign.with_name(version))
    assert find_prepared(str(foreign.parent.parent), "tried", ("tried",)).name == "10.0.0"


def test_what_is_not_there_names_the_command(tmp_path):
    refuses(r"config\.data\.dir is empty: set --config\.data\.dir=DIR.*prepare tried --source=PATH --dir=DIR", "")
    refuses(
        rf"{tmp_path} holds no prepared tried; this prepares it: \./launch\.sh prepare tried --source=PATH --dir={tmp_path}",
        tmp_path, FileNotFoundError,
    )  # fmt: skip
    refuses("holds no prepared tried", tmp_path / "nowhere", FileNotFoundError)


def test_one_that_was_interrupted_is_named(path):
    path.rename(path.with_name("1.0.0.incomplete"))
    refuses("1.0.0.incomplete was not finished: the command that began it", path.parent.parent, FileNotFoundError)


@pytest.mark.parametrize(("version", "age"), [("0.9.0", "an older"), ("1.1.0", "a newer"), ("one", "an unknown")])
def test_another_version_is_named_as_such(path, version, age):
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps(info | {"version": version}))
    if version != "one":
        path = path.rename(path.with_name(version))
        message = rf"{version} was prepared by {age} version \({version}; this one reads 1.0.0\): prepare it anew"
        refuses(message, path.parent.parent)
    refuses(rf"was prepared by {age} version \({version}", path)


def test_this_version_is_taken_before_an_older_one(path):
    shutil.copytree(path, path.with_name("0.9.0"))
    assert find_prepared(str(path.parent.parent), "tried") == path


def test_several_varieties_must_be_told_apart(path, tmp_path):
    prepare.prepare(make_builder(tried(), data_dir=tmp_path, short_side=8))
    refuses(
        rf"cnn_jax_tried holds 2 preparations: set --config.data.dir to one of {path}, .*short_side_8/1.0.0", tmp_path
    )
    assert find_prepared(str(path), "tried") == path
    small = path.parent / "short_side_8"
    assert find_prepared(str(small), "tried") == small / "1.0.0"


def test_tfrecord_files_say_what_to_do(foreign):
    info = json.loads((foreign / "dataset_info.json").read_text())
    for change in ({"fileFormat": "tfrecord"}, {}):
        info.pop("fileFormat", None)
        (foreign / "dataset_info.json").write_text(json.dumps(info | change))
        refuses(
            r"3.0.1 holds tfrecord files, which only TensorFlow reads; .*convert_format --dataset_version_dir=.*3.0.1 "
            r"--out_file_format=array_record .*; or prepare it anew: ./launch.sh prepare tried",
            foreign.parent.parent, names=("tried",),
        )  # fmt: skip


def test_a_directory_of_another_set_is_refused(path, foreign):
    for directory, name in ((path, "cnn_jax_tried"), (foreign, "tried")):
        with pytest.raises(ValueError, match=rf"{directory} holds {name}, another data set than other"):
            find_prepared(str(directory), "other", ("another",))
        assert find_prepared(str(directory), "other", None) == directory
    assert find_prepared(str(foreign), "ours", ("tried",)) == foreign


def test_one_that_is_described_but_not_finished_is_named(path):
    unfinished = path.rename(path.with_name("1.0.0.incomplete"))
    refuses("1.0.0.incomplete was not finished", unfinished, FileNotFoundError)
    refuses("1.0.0.incomplete was not finished", unfinished.parent, FileNotFoundError)


def test_what_may_not_be_read_is_not_missing(path, monkeypatch):
    stat = os.stat

    def refuse(file, **options):
        if str(file).startswith(str(path) + "/"):
            raise PermissionError(13, "Permission denied", str(file))
        return stat(file, **options)

    monkeypatch.setattr(os, "stat", refuse)  # whoever runs the tests may be above permissions
    refuses("Permission denied", path.parent.parent, PermissionError)


def test_a_description_that_is_none_is_damaged(path):
    for text in ("[]", "{", ""):
        (path / "dataset_info.json").write_text(text)
        refuses(rf"{path}/dataset_info.json is damaged \(.*\); remove its directory", path.parent.parent)


def test_the_command_can_be_pasted(tmp_path):
    refuses(rf"prepare tried --source=PATH --dir='{tmp_path}/my data'", tmp_path / "my data", FileNotFoundError)
