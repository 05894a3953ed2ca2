"""How far learning is, by the end of a file of events of any length."""

from pathlib import Path

import pytest

from server.config import ServerConfig
from server.events import Event, ignore
from server.published import learning_progress
from server.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path)


def test_before_anything_happened_there_is_no_progress(run: RunDirectory) -> None:
    assert learning_progress(run) is None
    run.recorded(ignore)(Event("collect", "progress", {"done": 1, "of": 3}))
    assert learning_progress(run) is None


def test_the_latest_iteration_is_found_after_thousands_of_lines(run: RunDirectory) -> None:
    record = run.recorded(ignore)
    for iteration in range(1, 800):
        record(Event("learn", "progress", {"iteration": iteration, "of": 800, "replay_loss": 0.123456}))
        record(Event("learn", "recovered", {"images": 100 * iteration}))
    assert run.events.stat().st_size > 1 << 17
    assert learning_progress(run) == (799, 800)


def test_a_line_that_is_still_being_written_is_passed_over(run: RunDirectory) -> None:
    run.recorded(ignore)(Event("learn", "progress", {"iteration": 4, "of": 9}))
    with run.events.open("a") as file:
        file.write('{"time": "2026-11-22T12:00:00.000+00:00", "sta')
    assert learning_progress(run) == (4, 9)
