"""What a run tells TensorBoard, and what it needs for it."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedfree.errors import ConfigError
from server.events import Event
from simulations.config import SimulationConfig
from simulations.reporting.trackers import FOLDER, TensorBoard, Untracked, tracked

RESULT = {
    "few_shot": {"5way1shot": {"mean": 48.2, "ci95": 0.8}},
    "baselines": {"best_single_model": {"5way1shot": {"mean": 41.9, "ci95": 0.6}}},
}


class Written:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int, float]] = []
        self.settings: Mapping[str, Any] = {}
        self.accuracies: Mapping[str, float] = {}
        self.is_closed = False

    def add_scalar(self, *values: Any) -> None:
        self.scalars.append(values)

    def add_hparams(self, settings: Mapping[str, Any], accuracies: Mapping[str, float], **_: str) -> None:
        self.settings, self.accuracies = settings, accuracies

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def board(tmp_path: Path, written: Written) -> TensorBoard:
    board = TensorBoard(tmp_path, SimulationConfig(clients=7, seed=3))
    board.__dict__["writer"] = written
    return board


def test_losses_go_there_by_iteration_at_the_time_of_their_event(
    board: TensorBoard, written: Written
) -> None:
    values = {"iteration": 3, "of": 12, "distillation_loss": 0.5, "replay_loss": float("nan"), "word": "x"}
    board(Event("learn", "progress", values, time=100.0))
    assert written.scalars == [("learn/distillation_loss", 0.5, 3, 100.0)]


def test_counts_go_there_as_they_grow(board: TensorBoard, written: Written) -> None:
    board(Event("collect", "progress", {"done": 2, "of": 12, "node": 101, "contribution": "ab"}))
    board(Event("verify", "accepted", {"contribution": "ab"}))
    board(Event("verify", "quarantined", {"contribution": "cd", "reason": "x"}))
    board(Event("verify", "accepted", {"contribution": "ef"}))
    board(Event("learn", "recovered", {"images": 200}))
    board(Event("learn", "recovered", {"images": 400}))
    assert [each[:3] for each in written.scalars] == [
        ("collect/done", 2, 2),
        ("verify/accepted", 1, 1),
        ("verify/quarantined", 1, 1),
        ("verify/accepted", 2, 2),
        ("learn/images", 200, 1),
        ("learn/images", 400, 2),
    ]


def test_what_was_set_and_what_came_out_go_there_together(board: TensorBoard, written: Written) -> None:
    board.finish(RESULT)
    assert written.settings == {"clients": 7, "seed": 3}
    assert written.accuracies == {"5way1shot/meta_learner": 48.2, "5way1shot/best_single_model": 41.9}
    board.close()
    assert written.is_closed


def test_a_package_that_is_missing_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'fedfree\[tensorboard\]'"),
        tracked("tensorboard", tmp_path / "run", SimulationConfig()),
    ):
        pytest.fail("it went on")
    assert not (tmp_path / "run").exists()


def test_nothing_is_made_before_there_is_something_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with tracked("tensorboard", tmp_path, SimulationConfig()) as tracker:
        assert isinstance(tracker, TensorBoard)
    assert list(tmp_path.iterdir()) == []


def test_without_the_switch_nobody_is_told() -> None:
    with tracked(None, Path("nowhere"), SimulationConfig()) as tracker:
        assert isinstance(tracker, Untracked)
        tracker(Event("learn", "progress", {"iteration": 1}))
        tracker.finish(RESULT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs fedfree[tensorboard]")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with tracked("tensorboard", tmp_path, SimulationConfig(clients=7)) as tracker:
        for iteration in (1, 2):
            tracker(Event("learn", "progress", {"iteration": iteration, "of": 2, "distillation_loss": 0.5}))
        tracker.finish(RESULT)
    read = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    assert [each.step for each in read.Scalars("learn/distillation_loss")] == [1, 2]
    assert read.Scalars("5way1shot/meta_learner")[0].value == pytest.approx(48.2)
