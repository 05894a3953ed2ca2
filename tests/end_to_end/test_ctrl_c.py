"""Ctrl-C in a run, in every phase of it: it ends within two seconds, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfree.host.flower_process import processes
from simulations.reporting.runs import look_at

SECONDS = 2
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began the tests may have it ignored
from simulations.__main__ import main
main()
"""


def write_images(root: Path) -> Path:
    """Grey images of classes told apart by their shade."""
    random = np.random.default_rng(0)
    for split in ("meta_train", "meta_val", "meta_test"):
        for label in range(5):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(9):
                pixels = random.integers(0, 60, (16, 16)) + 30 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A federation of which each phase takes a second or more."""
    options = ["--dataset", str(write_images(tmp_path / "images")), "--out", str(tmp_path / "run")]
    options += ["--clients", "3", "--classes-each", "3", "--image-size", "16", "--threads", "1"]
    options += [
        "--device",
        "cpu",
        "--iterations",
        "8",
        "--episodes",
        "400",
        "--cache",
        str(tmp_path / "cache"),
    ]
    settings = ["n_way=3", "n_query=2", "training.min_steps=100", "server.checkpoint_iterations=1"]
    settings += ["server.invert.images_per_model=30", "server.learn.compositions=30"]
    settings += ["server.learn.relational_tasks=10", "server.learn.batch_size=32"]
    return [*options, *(word for each in settings for word in ("--set", each))]


def start(options: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "500", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(options: Sequence[str], at: str) -> tuple[str, str]:
    """Press Ctrl-C when a line begins with ``at``; what was printed from then on, to either stream."""
    with start(options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(at):
                break
        else:
            pytest.fail(f"the run ended before {at!r}")
        process.send_signal(signal.SIGINT)
        try:
            printed = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == 130, printed
        return printed


def last_word(printed: str) -> str:
    """The one line on standard error; what Flower logs on it is not ours."""
    (line,) = [line for line in printed.splitlines() if "INFO" not in line and "WARNING" not in line]
    return line


EACH = {
    "prepare": "preparing",
    "collect": "training",
    "learn": "learning, iteration",
    "evaluate": "evaluating",
}


@pytest.mark.slow
def test_a_run_that_is_stopped_in_any_phase_goes_on_with_the_same_command(
    command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for phase, words in EACH.items():
        _, said = interrupt(command, f"{phase}: started")
        assert f"stopped ({words}" in said and "Traceback" not in said
        assert "the same command goes on: " in last_word(said) and str(run) in last_word(said)
        if phase != "prepare":
            assert look_at(run).state_words.startswith(f"interrupted: {words}")
    with start(command) as process:
        printed, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert "report: " in printed
    assert json.loads((run / "result.json").read_text())["few_shot"]
    lines = (run / "events.jsonl").read_text().splitlines()
    events = [(event["stage"], event["kind"]) for event in map(json.loads, lines)]
    assert events.count(("learn", "progress")) <= 8 + 1, "learning began again instead of going on"
    assert events.count(("adapt", "finished")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["collect", "learn"])
def test_a_run_under_flower_ends_as_soon_and_leaves_no_process(
    command: list[str], tmp_path: Path, phase: str
) -> None:
    _, said = interrupt([*command, "--engine", "flower"], f"{phase}: started")
    assert "the same command goes on: " in last_word(said)
    assert processes((tmp_path / "run" / ".flwr").resolve()) == []
