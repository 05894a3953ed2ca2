"""``pretrain``, ``pack`` and ``ledger`` as a person uses them: what is said, what is kept, how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from client.commands.progress import shown_progress
from client.training.cache import MANIFEST, WEIGHTS
from client.training.ledger import RESERVED, SPENT, Ledger, open_ledger
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.errors import PrivacyError
from fedfree.statement import DpSgd
from tests.programs import RunProgram

WriteImages = Callable[[Path, dict[str, int]], Path]

TINY = ("--image-size", 16, "--epochs", 1)
PRIVATE = (*TINY, "--epsilon", 8, "--delta", 1e-3)
RUN = DpSgd(2.0, 0.5, 10)


@pytest.fixture
def images(tmp_path: Path, write_images: WriteImages) -> Path:
    return write_images(tmp_path / "images", {"ant": 12, "owl": 12})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(Architecture(), num_classes=2, input=InputSpec(3, 16, 16))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def packing(checkpoint: Path, *more: object) -> tuple[object, ...]:
    options = ("--architecture", "conv4", "--classes", 2, "--image-size", 16)
    return ("pack", checkpoint, *options, "--out", checkpoint.parent / "packed", *more)


def test_the_ledger_shows_entries_with_and_without_privacy_reserved_and_spent(
    tmp_path: Path, run_client: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("killed", frozenset("ab"), RUN, delta=1e-5, epsilon_budget=None)
    ledger.reserve("sent", frozenset("bc"), RUN, delta=1e-5, epsilon_budget=None)
    ledger.spend("sent", frozenset("bc"), "f" * 64)
    ledger.spend("plain", frozenset("xy"), "e" * 64)
    ledger.pack("model", frozenset(), "d" * 64)
    status, out, err = run_client("ledger", "--ledger", ledger.path)
    assert (status, err) == (0, "")
    assert out.count(RESERVED) == 1 and out.count(SPENT) == 3
    assert out.count("no limit") == 2 and "f" * 12 in out
    words = " ".join(out.split())
    assert "by 2 contribution(s) under differential privacy, and 1 without" in words
    assert "counts for all images until it is packed again with --data" in words


def test_no_ledger_is_one_line_that_names_the_place(run_client: RunProgram) -> None:
    status, _, err = run_client("ledger")
    assert status == 2 and os.environ["FEDFREE_HOME"] in err and len(err.splitlines()) == 1


def test_the_budget_holds_from_every_working_directory(
    tmp_path: Path, images: Path, run_client: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, expected in (("here", 0), ("there", 2)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        seed = ("--seed", len(folder))
        status, _, err = run_client("pretrain", "--data", images, *PRIVATE, "--epsilon-budget", 9, *seed)
        assert status == expected, err
    assert "more than the budget of 9" in err
    (entry,) = open_ledger(None).entries()
    assert entry.state == SPENT


def test_a_ledger_that_an_earlier_release_left_here_is_taken_into_the_new_one(
    tmp_path: Path,
    images: Path,
    run_client: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("pretrain", "--data", images, *PRIVATE, "--epsilon-budget", 9)
    assert run_client(*options, "--ledger", ".cache/fedfree/ledger.sqlite")[0] == 0
    status, _, err = run_client(*options, "--seed", 1)
    assert status == 2 and "more than the budget of 9" in err
    assert "took 1 contributions of" in caplog.text and str(open_ledger(None).path) in caplog.text
    run_client(*options, "--seed", 1)
    assert caplog.text.count("took") == 1
    assert len(open_ledger(None).entries()) == 1


def test_pretrain_says_what_it_will_do_and_how_good_the_model_is(
    tmp_path: Path, images: Path, run_client: RunProgram
) -> None:
    out = tmp_path / "out"
    status, said, _ = run_client("pretrain", "--data", images, *TINY, "--out", out)
    assert status == 0
    assert (
        "on 22 images of 2 classes, 2 more held out: 300 steps, 300 epochs of 1; 1 epochs were asked" in said
    )
    assert "held-out accuracy: 100.0% (chance is 50.0%)" in said
    assert 3 <= said.count("train: ") <= 12 and "train: 300 of 300" in said
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, WEIGHTS]
    assert (tmp_path / "out.held_out_accuracy.txt").read_text() == "1.0000\n"
    _, again, _ = run_client("pretrain", "--data", images, *TINY, "--out", out)
    assert "this model was trained before" in again and "held-out accuracy: 100.0%" in again


@pytest.mark.parametrize("options", [TINY, PRIVATE])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained_or_spent(
    tmp_path: Path,
    images: Path,
    run_client: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
) -> None:
    monkeypatch.setattr(
        "client.commands.contributing.pretrain_measured", lambda *_, **__: pytest.fail("trained")
    )
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    status, said, err = run_client("pretrain", "--data", images, *options, "--out", out)
    assert (status, said) == (2, "")
    expected = f"{tmp_path / 'file'} is a file where a folder is expected: move it away, or name a folder"
    assert err == f"error: cannot write {out / MANIFEST}: {expected}\n"


def test_under_privacy_pretrain_says_that_no_accuracy_is_measured(
    tmp_path: Path, images: Path, run_client: RunProgram
) -> None:
    _, said, _ = run_client("pretrain", "--data", images, *PRIVATE, "--out", tmp_path / "out")
    assert "by DP-SGD on all 24 images of 2 classes: 1 steps" in said and "train: 1 of 1" in said
    assert "held-out accuracy: not measured" in said
    assert not list(tmp_path.glob("*held_out*"))


def test_progress_on_a_terminal_is_a_bar_and_elsewhere_a_few_lines() -> None:
    shown = []
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=80)
        with console.capture() as capture, shown_progress(console, lines=4) as observe:
            for done in range(401):
                observe("train", done, 400)
        shown.append(capture.get())
    assert "━" in shown[0] and "400/400" in shown[0]
    expected = [f"train: {done} of 400" for done in (0, 100, 200, 300, 400)]
    assert shown[1].splitlines() == expected


def test_a_packed_model_is_one_row_and_no_budget_holds_until_its_images_are_named(
    checkpoint: Path, images: Path, write_images: WriteImages, tmp_path: Path, run_client: RunProgram
) -> None:
    status, said, _ = run_client(*packing(checkpoint))
    assert status == 0 and "does not know which images are in this model" in said
    ledger, mine = open_ledger(None), frozenset({"some other image"})
    assert ledger.reserve("a", mine, RUN, delta=1e-5, epsilon_budget=None).without_differential_privacy == 1
    with pytest.raises(PrivacyError, match="pack such a model again with --data"):
        ledger.reserve("b", mine, RUN, delta=1e-5, epsilon_budget=100)
    status, said, _ = run_client(*packing(checkpoint, "--data", images))
    assert status == 0 and "does not know" not in said
    (packed,) = [entry for entry in ledger.entries() if entry.reservation.startswith("packed")]
    assert (packed.images, packed.state, packed.run) == (24, SPENT, None)
    assert ledger.reserve("c", mine, RUN, delta=1e-5, epsilon_budget=100).without_differential_privacy == 0
    status, _, err = run_client("pretrain", "--data", images, *PRIVATE, "--epsilon-budget", 100)
    assert status == 2 and "without differential privacy before" in err


SCRIPT = """
import sys, client.training.pretrain as pretrain
from fedfree.statement import DpSgd
pretrain.plan = lambda *_, **__: DpSgd(100.0, 1.0, 50_000)
from client.commands.main import main
main()
"""


@pytest.mark.parametrize("private", [False, True], ids=["plain", "DP-SGD"])
def test_ctrl_c_ends_training_with_one_line_and_the_row_stays_reserved(
    tmp_path: Path, images: Path, private: bool
) -> None:
    options = ["--epsilon", "8", "--delta", "1e-3"] if private else ["--epochs", "1000000"]
    command = [sys.executable, "-u", "-c", SCRIPT, "pretrain", "--data", str(images), "--image-size", "16"]
    with subprocess.Popen(
        [*command, *options, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = "train: 1" if private else "train: 0"
        assert any(line.startswith(first) for line in process.stdout)
        interrupted = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline()
        assert time.monotonic() - interrupted < 2
        assert said.startswith("stopped: no model was made")
        assert process.wait() == 130 and process.stderr.read() == ""
    assert not (tmp_path / "out").exists()
    entries = open_ledger(None).entries()
    assert [entry.state for entry in entries] == ([RESERVED] if private else [])
