import hashlib
import os
import stat
import tarfile
import zipfile

import pytest

from cnn_jax.data import archives
from tests.data.originals import tar, write, zipped

FILES = {"set/a.jpg": b"first", "set/sub/b.png": b"second" * 200, "set/c.txt": b""}


def contents(path):
    return {entry.name: entry.read() for entry in archives.entries(path)}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_is_read_however_it_is_compressed(tmp_path, mode):
    path = tmp_path / "set.tar"
    path.write_bytes(tar(FILES, mode))
    assert contents(path) == FILES
    sizes = {entry.name: entry.num_bytes for entry in archives.entries(path)}
    assert sizes == {name: len(data) for name, data in FILES.items()}
    assert next(iter(archives.entries(path))).where == f"{path}: set/a.jpg"


def test_a_zip_and_a_folder_are_read_likewise(tmp_path):
    (tmp_path / "set.zip").write_bytes(zipped(FILES))
    assert contents(tmp_path / "set.zip") == FILES
    write(tmp_path / "here", FILES | {"set/.hidden": b"x", ".git/d.jpg": b"x"})
    assert contents(tmp_path / "here") == FILES
    assert [entry.name for entry in archives.entries(tmp_path / "here")] == ["set/a.jpg", "set/c.txt", "set/sub/b.png"]


def test_members_of_a_plain_tar_are_read_by_place_in_any_order(tmp_path):
    path = tmp_path / "set.tar"
    path.write_bytes(tar(FILES))
    listed = list(archives.entries(path))
    path.write_bytes(path.read_bytes().replace(b"second", b"SECOND"))  # read now, not when it was listed
    assert [entry.read() for entry in reversed(listed)] == [b"", b"SECOND" * 200, b"first"]


def test_tars_in_a_tar(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(tar({"n1.tar": tar({"a": b"1", "b": b"22"}), "n2.tar": tar({"c": b"3" * 1000})}))
    found = {entry.name: {e.name: e.read() for e in members()} for entry, members in archives.nested_tars(path)}
    assert found == {"n1.tar": {"a": b"1", "b": b"22"}, "n2.tar": {"c": b"3" * 1000}}


def refuses(path, message, read=contents):
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../evil.jpg", "set/../../evil.jpg", "/etc/passwd", "C:\\evil.jpg", "..\\evil.jpg"])
@pytest.mark.parametrize("pack", [tar, zipped, lambda files: tar(files, "w:gz")], ids=["tar", "zip", "gz"])
def test_a_path_that_leaves_the_target_is_refused(tmp_path, name, pack):
    path = tmp_path / "evil"
    path.write_bytes(pack({"set/a.jpg": b"x", name: b"evil"}))
    refuses(path, "member '.*(evil|passwd).*' leads out of the target directory")
    assert [p.name for p in tmp_path.iterdir()] == ["evil"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(tmp_path, kind):
    path = tmp_path / "evil.tar"
    path.write_bytes(tar({"a.jpg": (kind, "/etc/passwd")}))
    refuses(path, "member 'a.jpg' is a link to '/etc/passwd'")


def test_a_device_is_refused(tmp_path):
    path = tmp_path / "evil.tar"
    path.write_bytes(tar({"a.jpg": (tarfile.FIFOTYPE, "")}))
    refuses(path, "member 'a.jpg' is neither file nor folder")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("part", [0.95, 0.7, 0.4, 0.1, 0.01])
def test_a_truncated_tar_is_named(tmp_path, mode, part):
    path = tmp_path / "set.tar"
    data = tar({f"{i}.jpg": hashlib.sha256(bytes([i])).digest() * 100 for i in range(9)}, mode)
    data = data[: len(data) - 10240] if mode == "w" else data  # without the padding, which may be lost unharmed
    path.write_bytes(data[: int(len(data) * part)])
    refuses(path, "is no whole tar or zip archive|is cut short")


def test_a_tar_cut_between_two_members_is_cut_short(tmp_path):
    path = tmp_path / "set.tar"
    path.write_bytes(tar({"a": b"x" * 512, "b": b"y" * 512})[: 2 * 512])
    refuses(path, "is cut short: it lacks the empty block")


def test_a_tar_within_a_tar_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "train.tar"
    inner = tar({"a": b"x" * 512, "b": b"y" * 512})[: 3 * 512]
    path.write_bytes(tar({"n1.tar": inner}))

    def read(path):
        return [list(members()) for _, members in archives.nested_tars(path)]

    refuses(path, r"train.tar: n1.tar is (cut short|no whole)", read)


@pytest.mark.parametrize("cut", [20, 200])
def test_a_truncated_zip_is_named(tmp_path, cut):
    path = tmp_path / "set.zip"
    path.write_bytes(zipped(FILES)[:-cut])
    refuses(path, "is no whole tar or zip archive")


def test_a_damaged_zip_member_is_named(tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(zipped(FILES).replace(b"second", b"SECOND"))
    refuses(path, r"set.zip: set/sub/b.png is no whole.*CRC")


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "page.tar.gz").write_text("<html>moved</html>" * 100)
    refuses(tmp_path / "page.tar.gz", "is no whole tar or zip archive")
    with pytest.raises(FileNotFoundError, match="nothing does not exist; name the originals"):
        archives.entries(tmp_path / "nothing")


def test_a_folder_that_contains_itself_is_refused(tmp_path):
    write(tmp_path / "set", {"a/b.jpg": b"x"})
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match="loop: a link leads back to a folder above it"):
        list(archives.entries(tmp_path / "set"))


def test_links_to_nowhere_and_pipes_in_a_folder_are_named(tmp_path):
    write(tmp_path, {"a/1.jpg": b"x", "b/1.jpg": b"x"})
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "b" / "pipe.jpg")
    refuses(tmp_path / "a", "a/gone.jpg is a link to nowhere; remove it")
    refuses(tmp_path / "b", "b/pipe.jpg is no plain file; remove it")


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    write(tmp_path, {"a/1.jpg": b"x", "a/closed/2.jpg": b"x"})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # whoever runs the tests may be above permissions
    with pytest.raises(PermissionError, match="closed"):
        list(archives.entries(tmp_path))


def test_names_that_cannot_be_printed_are_shown_in_one_line(tmp_path):
    write(tmp_path, {"a\nb.jpg": b"x", f"{os.fsdecode(b'c' + bytes([255]))}.jpg": b"x", "d é.jpg": b"x"})
    wheres = sorted(entry.where for entry in archives.entries(tmp_path))
    assert wheres == [f"{tmp_path}/a\\nb.jpg", f"{tmp_path}/c\\udcff.jpg", f"{tmp_path}/d é.jpg"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        link = zipfile.ZipInfo("set/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    refuses(tmp_path / "evil.zip", "member 'set/link.jpg' is a link")


def test_a_member_that_would_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    for name, data in (("bomb.zip", zipped(FILES)), ("bomb.tar.gz", tar(FILES, "w:gz"))):
        (tmp_path / name).write_bytes(data)
        refuses(tmp_path / name, r"b.png.* of 1,200 bytes is larger than any member")


def official(data, name="set.tar"):
    return archives.Official(
        name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", "http://example.org/set.tar"
    )


def test_the_checksum_is_checked(tmp_path):
    path, seen = tmp_path / "set.tar", []
    path.write_bytes(b"contents")
    archives.check_official(path, official(b"contents"), seen.append)
    assert sum(seen) == 8
    md5 = archives.Official("set.tar", 8, f"md5:{hashlib.md5(b'contents').hexdigest()}")
    archives.check_official(path, md5)
    with pytest.raises(ValueError, match=r"set.tar has the size of set.tar, but sha256 .* instead of .*damaged"):
        archives.check_official(path, official(b"contentz"))


def test_an_archive_is_known_by_its_name_or_its_size(tmp_path):
    one, other = official(b"12345", "one.tar"), official(b"1234567", "other.tar")
    (tmp_path / "one.tar").write_bytes(b"1234567")
    (tmp_path / "renamed.tar").write_bytes(b"1234567")
    (tmp_path / "mine.tar").write_bytes(b"1")
    known = [archives.as_published(tmp_path / name, (one, other)) for name in ("one.tar", "renamed.tar", "mine.tar")]
    assert known == [one, other, None]


def test_pictures_are_known_by_their_names():
    assert all(map(archives.is_picture, ("a.JPEG", "x/b.jpg", "c.Png", "d.webp", "e.gif")))
    assert not any(map(archives.is_picture, ("a.txt", "jpg", "b.jpg.txt", "c.tar")))
