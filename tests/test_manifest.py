"""Whatever happens to a file of a checkpoint, its manifest tells."""

import hashlib
import json

import pytest

from cnn_jax.manifest import MANIFEST, DamageError, read_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_bytes(b"abc")
    (tmp_path / "meta").write_bytes(b"")
    write_manifest(tmp_path, 7, 0.5, {"params/kernel": ["float32", [3, 4]]})
    return tmp_path


def test_it_says_what_there_is(folder):
    body, digest = (folder / MANIFEST).read_text().splitlines()
    assert hashlib.sha256(body.encode()).hexdigest() == digest
    assert json.loads(body)["files"] == {
        "meta": [0, hashlib.sha256(b"").hexdigest()],
        "state/a": [3, hashlib.sha256(b"abc").hexdigest()],
    }
    assert verify(folder, 7) == read_manifest(folder, 7)
    assert read_manifest(folder, 7)["score"] == 0.5 and read_manifest(folder, 7)["leaves"] == {
        "params/kernel": ["float32", [3, 4]]
    }


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "state" / "a").write_bytes(b"abd"), "state/a does not match its sha256"),
        (lambda folder: (folder / "state" / "a").write_bytes(b"ab"), "state/a has 2 bytes instead of 3"),
        (lambda folder: (folder / "meta").unlink(), "meta cannot be read"),
        (lambda folder: (folder / MANIFEST).unlink(), "MANIFEST cannot be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b""), "MANIFEST does not match its own sha256"),
    ],
)
def test_damage_is_told(folder, damage, told):
    damage(folder)
    with pytest.raises(DamageError, match=told):
        verify(folder, 7)


def test_every_flipped_bit_of_the_manifest_is_told(folder):
    whole = (folder / MANIFEST).read_bytes()
    for position in range(len(whole)):
        (folder / MANIFEST).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamageError):
            read_manifest(folder, 7)


def test_a_manifest_of_another_step_is_told(folder):
    with pytest.raises(DamageError, match="is that of step 7"):
        read_manifest(folder, 8)


def test_only_a_part_is_read_where_only_a_part_is_asked_for(folder):
    (folder / "meta").unlink()
    assert verify(folder, 7, "state/")["step"] == 7
