"""``--public-images``: what is wrong with the folder is told before a door opens or anything is learned."""

from pathlib import Path

import pytest
from PIL import Image

from server.config import CollectConfig
from server.doors.deployment import DeploymentConfig, init
from server.storage.run_directory import RunDirectory
from tests.programs import RunProgram


@pytest.mark.parametrize(
    "command", [("learn",), ("serve", "--insecure", "--listen", "localhost:0", "--store"), ("up",)]
)
def test_a_folder_that_is_not_there_is_one_line_and_nothing_begins(
    command: tuple[str, ...], tmp_path: Path, run_program: RunProgram
) -> None:
    path = tmp_path / "run"
    if command == ("up",):
        init(path, ["localhost"], DeploymentConfig(), CollectConfig())
    name, *options = command
    status, out, err = run_program("server", name, "--public-images", tmp_path / "gone", *options, path)
    assert status == 2 and f"no such file or folder: {tmp_path / 'gone'}" in err
    assert len(err.strip().splitlines()) == 1 and "listening" not in out
    assert RunDirectory(path).public_images() is None and not RunDirectory(path).events.exists()


def test_learning_has_read_them_before_it_looks_at_contributions(
    tmp_path: Path, run_program: RunProgram
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for shade in (1, 2):
        Image.new("RGB", (30, 20), (shade, 0, 0)).save(photos / f"{shade}.png")
    status, _, err = run_program("server", "learn", "--public-images", photos, run)
    kept = RunDirectory(run).public_images()
    assert status == 1 and kept and f"2 public images, sha256 {kept.sha256}, beside recovered images" in err
    assert "the quorum is 2" in err.splitlines()[-1]
