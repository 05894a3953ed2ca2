"""Run directories as they are found, in every state they can be in."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedfree.errors import ConfigError
from fedfree.host.lock import exclusive
from server.events import Event
from server.storage.run_directory import event_to_line
from simulations.config import SimulationConfig
from simulations.reporting.listing import list_table
from simulations.reporting.runs import find_runs, how_far, look_at, open_finished, open_run

RESULT = {
    "few_shot": {
        "5way1shot": {"mean": 48.2, "ci95": 0.8, "episodes": 600, "transductive": False},
        "5way5shot": {"mean": 62.6, "ci95": 0.7, "episodes": 600, "transductive": False},
    },
    "finished": "2026-11-29T07:46:59+00:00",
}


def make_run(folder: Path, *events: Event, result: object = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(SimulationConfig(clients=7).to_toml())
    (folder / "command.txt").write_text("fedfree-sim run --clients 7\n")
    if events:
        (folder / "events.jsonl").write_text("".join(map(event_to_line, events)))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def progress(iteration: int) -> Event:
    return Event("learn", "progress", {"iteration": iteration, "of": 12})


def test_a_run_with_a_result_is_finished(tmp_path: Path) -> None:
    run = look_at(make_run(tmp_path / "run", progress(12), result=RESULT))
    assert (run.state, run.date, run.setting("clients")) == ("finished", "2026-11-29", 7)
    assert run.result == RESULT
    assert run.command == "fedfree-sim run --clients 7"


def test_a_run_whose_files_are_of_a_time_that_is_on_no_calendar_has_no_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = look_at(make_run(tmp_path / "run", progress(1)))
    assert run.date
    file = SimpleNamespace(stat=lambda: SimpleNamespace(st_mtime=1e15))
    monkeypatch.setattr("simulations.reporting.runs._files", lambda _: [file])
    assert run.date == ""


def test_a_run_that_was_stopped_says_at_which_iteration(tmp_path: Path) -> None:
    run = look_at(make_run(tmp_path / "run", progress(2), progress(3)))
    assert run.state_words == "interrupted: learning, iteration 3 of 12"


def test_a_run_that_did_nothing_yet_is_prepared(tmp_path: Path) -> None:
    assert look_at(make_run(tmp_path / "run")).state_words == "prepared"


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", progress(3))
    (folder / "error.txt").write_text("1 accepted contributions, the quorum is 2\n")
    assert look_at(folder).state_words == "failed: 1 accepted contributions, the quorum is 2"


@pytest.mark.parametrize("held", [".", ".flwr"], ids=["a learner", "a simulation"])
def test_a_run_that_a_process_holds_is_running(tmp_path: Path, held: str) -> None:
    folder = make_run(tmp_path / "run", progress(3))
    with exclusive(folder / held):
        assert look_at(folder).state_words.startswith("running: learning, iteration 3 of 12 (process ")
    assert look_at(folder).state == "interrupted"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event("collect", "progress", {"done": 2, "of": 12}), "training, 2 of 12 organisations"),
        (Event("collect", "failed", {"reason": "x"}), "preparing"),
        (Event("verify", "finished", {}), "verifying"),
        (Event("learn", "started", {"done": 10, "of": 12}), "learning, iteration 10 of 12"),
        (Event("broadcast", "finished", {}), "broadcasting"),
        (Event("adapt", "progress", {"done": 1}), "adapting"),
        (Event("adapt", "finished", {}), "evaluating"),
        (Event("colour", "painted", {}), "preparing"),
    ],
)
def test_how_far_a_run_is_is_told_by_its_last_event(event: Event, words: str) -> None:
    assert how_far([event]) == words


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("config.toml", b"dataset = [", "not valid TOML"),
        ("config.toml", b"\xff\xfe", "not valid TOML"),
        ("config.toml", b"colour = 'blue'", "no settings of a simulation"),
        ("result.json", b"{", "not the result of a run"),
        ("result.json", b"[]", "not the result of a run"),
        ("result.json", b'{"few_shot": {"5way1shot": {}}}', "not the result of a run"),
        (
            "result.json",
            b'{"few_shot": {"5way1shot": {"mean": "x", "ci95": 1}}}',
            "mean: Input should be a valid number",
        ),
    ],
)
def test_a_damaged_run_is_named_and_refused_where_it_is_asked_for(
    tmp_path: Path, file: str, content: bytes, word: str
) -> None:
    folder = make_run(tmp_path / "run", result=RESULT)
    (folder / file).write_bytes(content)
    run = look_at(folder)
    assert run.state == "damaged" and word in run.remark
    with pytest.raises(ConfigError, match="is damaged"):
        open_run(folder)


def test_runs_are_found_at_any_depth_and_what_is_none_is_named(tmp_path: Path) -> None:
    for name in ("b", "a/pool/1", "a/pool/0"):
        make_run(tmp_path / name, result=RESULT)
    make_run(tmp_path / "b" / "store" / "c")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    runs, foreign = find_runs(tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in runs] == ["a/pool/0", "a/pool/1", "b"]
    assert foreign == [tmp_path / "other"]
    assert [run.folder for run in find_runs(tmp_path / "b")[0]] == [tmp_path / "b"]
    with pytest.raises(ConfigError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["config.toml", "result.json", "events.jsonl"])
def test_a_run_in_which_a_folder_is_in_the_place_of_a_file_is_listed_with_the_reason(
    tmp_path: Path, file: str
) -> None:
    folder = make_run(tmp_path / "runs" / "mine")
    (folder / file).unlink(missing_ok=True)
    (folder / file).mkdir()
    runs, foreign = find_runs(tmp_path / "runs")
    assert ([run.state for run in runs], foreign) == (["damaged"], [])
    assert f"mine: damaged: cannot read {folder / file}: " in str(list_table(runs, tmp_path / "runs").notes)
    with pytest.raises(ConfigError, match="is damaged: cannot read"):
        open_run(folder)


def test_a_folder_that_is_closed_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = make_run(tmp_path / "runs" / "theirs", result=RESULT)
    closed_too = tmp_path / "runs" / "pool" / "closed"
    make_run(closed_too / "run", result=RESULT)
    make_run(tmp_path / "runs" / "mine", result=RESULT)
    reach, list_folder = Path.stat, os.scandir

    def stat(path: Path, **options: bool) -> os.stat_result:
        if {closed, closed_too} & set(path.parents):
            raise PermissionError(13, "Permission denied", str(path))
        return reach(path, **options)

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path) in (closed, closed_too):
            raise PermissionError(13, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(os, "scandir", scandir)
    runs, foreign = find_runs(tmp_path / "runs")
    assert {run.folder.name: run.state for run in runs} == {
        "mine": "finished",
        "theirs": "closed to you",
        "closed": "closed to you",
    }
    assert foreign == []
    reason = f"theirs: closed to you: cannot read {closed / 'config.toml'}: Permission denied"
    assert reason in list_table(runs, tmp_path / "runs").notes
    with pytest.raises(ConfigError, match="theirs is closed to you: cannot read"):
        open_run(closed)


def test_what_is_no_run_or_has_no_result_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        open_run(tmp_path)
    with pytest.raises(ConfigError, match=r"has no result yet.*iteration 3 of 12.*fedfree-sim show"):
        open_finished(make_run(tmp_path / "run", progress(3)))


def test_the_list_holds_a_line_a_run_and_says_beneath_what_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", result=RESULT)
    make_run(tmp_path / "b", progress(3))
    (make_run(tmp_path / "c\x1b[2J") / "error.txt").write_text("why \x1b[2J")
    table = list_table(find_runs(tmp_path)[0], tmp_path)
    assert table.titles[-3:] == ("5-way 1-shot", "5-way 5-shot", "date")
    first, second, third = table.texts
    assert first[:6] == ("a", "glyphs", "7", "random", "default", "finished")
    assert first[6:] == ("48.2 ± 0.8", "62.6 ± 0.7", "2026-11-29")
    assert second[5:8] == ("interrupted: learning, iteration 3 of 12", "", "")
    assert third[5] == "failed"
    assert len(table.notes) == 1 and "failed: why" in table.notes[0]
    assert "\x1b" not in "".join([*third, *table.notes])


def test_a_link_that_leads_back_lists_no_run_twice(tmp_path: Path) -> None:
    make_run(tmp_path / "a", result=RESULT)
    (tmp_path / "loop").symlink_to(tmp_path)
    found, foreign = find_runs(tmp_path)
    assert ([run.folder.name for run in found], foreign) == (["a"], [])
