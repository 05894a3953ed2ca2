"""Checkpoints: read back to the bit, or passed over in words; never half written."""

import logging
import resource
from pathlib import Path

import pytest
import torch

from fedfree.errors import StorageError
from server.storage.checkpoint import learned_from, read_checkpoint, write_checkpoint

TENSORS = {"weights": torch.randn(3, 4), "rng": torch.Generator().get_state(), "count": torch.tensor(7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, "run", 20, TENSORS)
    return path


def test_what_was_saved_last_is_read_back_to_the_bit(path: Path) -> None:
    write_checkpoint(path, "run", 30, TENSORS)
    saved = read_checkpoint(path, "run")
    assert saved is not None and saved.iterations == 30
    assert saved.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_disk_that_fills_while_it_is_saved_is_named_and_what_was_saved_stays(path: Path) -> None:
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"cannot write {path}: File too large"):
            write_checkpoint(path, "run", 30, TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_where_nothing_was_saved_there_is_nothing_to_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_checkpoint(tmp_path / "none", "run") is None
    assert not caplog.messages


@pytest.mark.parametrize("kept", [0, 1, 8, 100, -1])
def test_an_empty_or_cut_checkpoint_is_passed_over_in_words(
    path: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    assert read_checkpoint(path, "run") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"passed over the checkpoint {path}: it is damaged" in record.getMessage()
    assert "learning begins again from the contributions" in record.getMessage()


@pytest.mark.parametrize("content", [b"PK\x03\x04 something else", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_another_programs_file_is_passed_over_in_words(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path.write_bytes(content)
    assert read_checkpoint(path, "run") is None
    assert "passed over the checkpoint" in caplog.text


def test_another_runs_checkpoint_is_passed_over_in_words(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_checkpoint(path, "other") is None
    assert "it belongs to another configuration, other contributions or another version" in caplog.text


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*checkpoint.safetensors: No space left on device"):
        write_checkpoint(path, "run", 30, TENSORS)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_flipped_bit_anywhere_is_passed_over_in_words(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert read_checkpoint(path, "run") is None, place
        assert f"passed over the checkpoint {path}" in caplog.text
        caplog.clear()


def test_a_checkpoint_knows_what_it_was_learned_from(path: Path) -> None:
    write_checkpoint(path, "run", 30, TENSORS, ["a", "b"])
    assert learned_from(path) == ["a", "b"]
    path.write_bytes(path.read_bytes()[:-1])
    assert learned_from(path) is None
