"""``look`` as a person uses it: what is said, how it ends, and that no name moves the cursor."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.commands import looking
from client.data.loading import load_images
from tests.programs import RunProgram

WriteImages = Callable[[Path, dict[str, int]], Path]

SMALL = ("--image-size", 16, "--epochs", 1, "--threads", 1)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def images(tmp_path: Path, write_images: WriteImages) -> Path:
    return write_images(tmp_path / "images", {"ant": 22, "owl": 20})


def test_a_good_folder_is_shown_and_ends_well(images: Path, run_client: RunProgram) -> None:
    status, out, err = run_client("look", images, *SMALL)
    assert status == 0 and "error" not in err
    assert f"42 images of 2 classes in {images}" in out and "16×16" in out
    assert "training conv4-32-batch on 38 images of 2 classes, 4 more held out: 300 steps" in out
    assert "on this machine" in out and "memory" in out and "yes: every class has 20 images" in out
    assert "random weights" in out and "measure it on 4 images" in out


def test_few_images_are_said_to_be_few(
    tmp_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    few = write_images(tmp_path / "few", {"ant": 22, "owl": 5})
    status, out, _ = run_client("look", few, *SMALL)
    assert status == 0 and "perhaps: 1 of 2 classes have fewer than 20 images" in out and "yes:" not in out


def test_json_says_the_same_and_a_broken_image_ends_it_with_status_2(
    images: Path, run_client: RunProgram
) -> None:
    (images / "ant" / "broken.jpg").write_bytes(b"no")
    (images / "owl" / "phone.HEIC").write_bytes(b"no")
    (images / "owl" / "copy.png").write_bytes((images / "ant" / "0.png").read_bytes())
    status, out, err = run_client("look", images, "--json", *SMALL)
    said = json.loads(out)
    assert status == 2 and err.splitlines()[-1] == f"error: {said['refusals'][0]}"
    assert "ant/broken.jpg" in said["refusals"][0] and said["trainable"] is False
    assert said["unreadable"][0]["image"] == "ant/broken.jpg"
    assert said["passed_over"] == {"not_read": ["owl/phone.HEIC"]}
    assert said["copies"] == [{"images": ["ant/0.png", "owl/copy.png"], "classes": ["ant", "owl"]}]
    assert said["training"]["estimated_seconds"] > 0
    assert [(each["name"], each["images"]) for each in said["classes"]] == [("ant", 22), ("owl", 21)]
    _, shown, _ = run_client("look", images, *SMALL)
    assert "ant/0.png = owl/copy.png" in shown and "sips" in shown and "WARNING" in shown
    assert "ant/broken.jpg (of no known image format" in shown and "not yet" in shown


def test_one_class_is_shown_and_refused_as_training_refuses_it(
    tmp_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    alone = write_images(tmp_path / "alone", {"ant": 3})
    status, out, err = run_client("look", alone, *SMALL)
    assert status == 2 and "3 images of 1 classes" in out and "expected at least 2 classes" in err
    with pytest.raises(Exception, match="expected at least 2 classes"):
        load_images(alone)


def test_of_many_classes_and_broken_images_a_few_are_shown(
    tmp_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    many = write_images(tmp_path / "many", {f"class{index:02}": 1 for index in range(3)})
    for index in range(30):
        (many / f"more{index:02}").mkdir()
        (many / f"more{index:02}" / "0.png").write_bytes(b"no")
    _, out, _ = run_client("look", many, *SMALL)
    assert "and 13 more classes, in --json" in out and "and 27 more" in out
    assert out.count("of no known image format") == 3


def test_no_file_name_moves_the_cursor(images: Path, run_client: RunProgram) -> None:
    evil = images / "\x1b[31m[red]evil"
    evil.mkdir()
    (evil / "\x1b]0;title\x07.png").write_bytes(b"no")
    _, out, err = run_client("look", images, *SMALL)
    assert "\x1b" not in out + err and "\x07" not in out + err and "?[31m[red]evil" in out


def test_ctrl_c_ends_it_in_one_line(
    images: Path, run_client: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "foresee", interrupted)
    status, out, err = run_client("look", images, *SMALL)
    assert status == 130 and out == "" and err.splitlines()[-1] == "stopped: nothing was written"


def test_a_folder_may_be_called_by_a_year(
    tmp_path: Path, write_images: WriteImages, run_client: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "2024", {"ant": 2, "owl": 2})
    status, out, _ = run_client("look", "2024", *SMALL)
    assert status == 0 and "4 images of 2 classes in 2024" in out
