"""The command line: wrong input gives one clear line, no traceback, and exit status 2."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from simulations.config import SimulationConfig
from tests.programs import RunProgram

Refusal = Callable[..., str]


def write_tree(root: Path, *, splits: tuple[str, ...] = (), classes: int = 6, images: int = 8) -> Path:
    """Images of classes told apart by their shade, in an image-folder tree."""
    generator = torch.Generator().manual_seed(0)
    for split in splits or ("",):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                noise = torch.randint(0, 60, (16, 16), generator=generator)
                Image.fromarray((noise + 30 * label).to(torch.uint8).numpy()).save(folder / f"{index}.png")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "images", splits=("meta_train", "meta_val", "meta_test"))


@pytest.fixture
def refusal(run_program: RunProgram, tmp_path: Path) -> Refusal:
    """The one line of a run with arguments that must end with exit status 2."""
    common = ("--out", tmp_path / "run", "--cache", tmp_path / "cache", "--image-size", 16)

    def refused(*arguments: object) -> str:
        status, _, err = run_program("simulations", "run", *common, *arguments)
        (line,) = [each for each in err.splitlines() if each.startswith("error:")]
        assert status == 2
        return line

    return refused


def test_a_missing_path_is_named(refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("--dataset", tmp_path / "nowhere.zip")
    assert "no such data set or path" in line and "nowhere.zip" in line


def test_a_tree_without_splits_is_explained(refusal: Refusal, tmp_path: Path) -> None:
    plain = write_tree(tmp_path / "plain")
    assert "meta_test" in refusal("--dataset", plain)


def test_a_folder_with_one_class_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    single = write_tree(tmp_path / "single", splits=("meta_train", "meta_val", "meta_test"), classes=1)
    line = refusal("--dataset", single, "--set", "n_way=2")
    assert "got 0 of 1" in line or "got 1 of 1" in line


def test_more_ways_than_classes_is_refused_with_both_numbers(refusal: Refusal, tree: Path) -> None:
    line = refusal("--dataset", tree, "--set", "n_way=9", "--set", "n_query=2")
    assert "9-way episodes need 9 classes" in line and "got 6 of 6" in line


def test_an_unreadable_image_is_named(refusal: Refusal, tree: Path) -> None:
    (tree / "meta_test" / "class0" / "0.png").write_bytes(b"no image at all")
    options = (
        *("--set", "n_way=3", "--set", "n_query=2", "--set", "training.min_steps=1"),
        *("--classes-each", 3, "--clients", 2, "--epochs", 1),
    )
    line = refusal("--dataset", tree, *options, "--iterations", 1)
    assert "0.png" in line


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--engine", "warp", "engine"),
        ("--preset", "magic", "preset"),
        ("--set", "partition=fair", "partition"),
        ("--architectures", "conv5", "conv5"),
        ("--clients", "1", "clients"),
        ("--image-size", "4", "image-size"),
    ],
)
def test_an_unknown_value_of_an_option_is_named(refusal: Refusal, option: str, value: str, word: str) -> None:
    line = refusal(option, value)
    assert word in line and value.rpartition("=")[2] in line


def test_an_unknown_option_ends_with_status_2(run_program: RunProgram) -> None:
    assert run_program("simulations", "run", "--teleport", "yes")[0] == 2


def test_a_configuration_file_with_an_unknown_key_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("colour = 'blue'\n")
    line = refusal("--config", tmp_path / "config.toml")
    assert "colour" in line


def test_a_directory_with_another_federation_is_left_alone(
    refusal: Refusal, tmp_path: Path, tree: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(SimulationConfig(seed=5).to_toml())
    line = refusal("--dataset", tree)
    assert "holds another federation" in line and re.search(r"differs in dataset, .*seed", line)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.toml"]


def test_a_tiny_federation_leaves_everything_it_promises(
    run_program: RunProgram, tmp_path: Path, tree: Path
) -> None:
    sizes = (
        *("--set", "training.min_steps=5", "--classes-each", 3, "--clients", 2),
        *("--epochs", 1, "--iterations", 2, "--episodes", 20),
    )
    shape = ("--set", "n_way=3", "--set", "n_query=2", "--image-size", 16, "--threads", 1)
    out = tmp_path / "run"
    paths = ("--dataset", tree, "--out", out, "--cache", tmp_path / "cache")
    status, printed, _ = run_program("simulations", "run", *sizes, *shape, *paths)
    assert status == 0 and "3-way 5-shot" in printed
    promised = {
        "meta_learner.safetensors",
        "meta_learner.manifest.pb",
        "synthetic.png",
        "report.html",
        "events.jsonl",
        "config.toml",
        "result.json",
    }
    assert promised <= {path.name for path in out.iterdir()}
    drawn, reported = (out / "synthetic.png").read_bytes(), (out / "report.html").read_bytes()
    (out / "synthetic.png").unlink()
    assert run_program("simulations", "report", out)[0] == 0
    assert (out / "synthetic.png").read_bytes() == drawn and (out / "report.html").read_bytes() == reported
    again = tmp_path / "again"
    shutil.copytree(out / "store", again / "store")
    paths = ("--dataset", tree, "--out", again, "--cache", tmp_path / "cache")
    assert run_program("simulations", "run", *sizes, *shape, *paths)[0] == 0
    for name in ("meta_learner.safetensors", "meta_learner.manifest.pb"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
