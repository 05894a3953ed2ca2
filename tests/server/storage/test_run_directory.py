"""A run has its starts, adopted for good, or none."""

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fedfree.errors import ConfigError, ContributionError, FederationError, StorageError
from fedfree.host.starts import MANIFEST, WEIGHTS, write_start
from fedfree.start import LoadedStart, encode_start
from server.config import ServerConfig
from server.doors.status import RunStatus
from server.events import Event, ignore
from server.storage.broadcast import Broadcast
from server.storage.run_directory import RunDirectory, event_to_line, events_from_lines
from server.storage.store import ACCEPTED
from server.verify.verify import verify_received


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path / "run")


def written(folder: Path, begun: LoadedStart) -> Path:
    write_start(folder, begun.start, begun.weights)
    return folder


def test_a_run_begins_from_no_start_until_it_adopts_one(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    assert (run.start(), run.start_sha256(), run.store().start) == (None, "", None)
    run.adopt_start(written(tmp_path / "start", make_start()))
    assert run.start() == run.store().start == make_start()
    assert run.start_sha256() == make_start().start.sha256


def test_the_same_start_again_changes_nothing_and_another_is_refused(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    own, other = make_start(0), make_start(1)
    run.adopt_start(written(tmp_path / "start", own))
    run.adopt_start(tmp_path / "start")
    names = f"{other.start.sha256[:12]}…, and .* began from {own.start.sha256[:12]}…: a run keeps its start"
    with pytest.raises(ConfigError, match=names):
        run.adopt_start(written(tmp_path / "other", other))
    assert run.start() == own


def test_what_a_killed_process_left_of_a_start_is_none_and_is_written_again(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    run.start_folder.mkdir()
    (run.start_folder / WEIGHTS).write_bytes(b"half")
    assert run.start_sha256() == ""
    run.adopt_start(written(tmp_path / "start", make_start()))
    assert run.start() == make_start()


def test_a_start_that_is_cut_off_is_not_adopted(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    folder = written(tmp_path / "start", make_start())
    (folder / WEIGHTS).write_bytes(make_start().weights[:-1])
    with pytest.raises(ContributionError, match=f"no start in {folder}"):
        run.adopt_start(folder)
    assert not run.start_folder.exists()


def test_a_run_with_contributions_from_no_start_adopts_none(
    run: RunDirectory,
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    store = run.store()
    store._read_start = make_start
    store.receive(*contribute_from(make_start()))
    verify_received(store, ignore)
    assert len(store.ids(ACCEPTED)) == 1
    with pytest.raises(ConfigError, match="accepted contributions that began from no public start"):
        run.adopt_start(written(tmp_path / "start", make_start()))


def test_a_configuration_of_somebodys_own_is_kept_and_must_be_for_a_start(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    own = ServerConfig(iterations=7).to_toml()
    run.server_toml.write_text(own)
    with pytest.raises(
        ConfigError, match="with preset default: use preset start, and leave out the settings"
    ):
        run.adopt_start(written(tmp_path / "start", make_start()))
    assert (run.start(), run.server_toml.read_text()) == (None, own)


@pytest.mark.parametrize(("begins", "preset"), [(True, "default"), (False, "start")])
def test_a_preset_that_cannot_end_the_run_is_told_before_anybody_trains(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart], begins: bool, preset: str
) -> None:
    run.require_preset()
    if begins:
        run.adopt_start(written(tmp_path / "start", make_start()))
        run.require_preset()
    run.server_toml.write_text(f'preset = "{preset}"\n')
    with pytest.raises(ConfigError, match=f"configured with preset {preset}: use "):
        run.require_preset()


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_flipped_bit_in_the_start_is_named_and_giving_the_start_again_mends_it(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart], name: str
) -> None:
    run.adopt_start(written(tmp_path / "start", make_start()))
    kept = bytearray((run.start_folder / name).read_bytes())
    kept[-2] ^= 1
    (run.start_folder / name).write_bytes(kept)
    identity = make_start().start.sha256
    with pytest.raises(
        StorageError, match=f"the start {identity[:12]}….* is damaged .*: name it again, by --start"
    ):
        run.start()
    run.adopt_start(tmp_path / "start")
    assert run.start() == make_start()


def test_of_several_starts_the_first_is_the_runs_and_the_others_stand_beside_it(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    starts = [make_start(seed) for seed in range(3)]
    folders = [written(tmp_path / str(seed), begun) for seed, begun in enumerate(starts)]
    run.adopt_start(*folders)
    assert run.start() == run.store().start == starts[0]
    others = {each.start.sha256: each for each in starts[1:]}
    assert {each.start.sha256: each for each in run.further_starts()} == others
    assert list(run.start_folders()) == [starts[0].start.sha256, *sorted(others)]
    run.adopt_start(*folders)
    run.adopt_start(folders[0], folders[2])
    for given in ((folders[1],), (folders[0], written(tmp_path / "new", make_start(3)))):
        with pytest.raises(ConfigError, match=f"{given[-1]} holds the start .*: a run keeps its start"):
            run.adopt_start(*given)


def test_what_a_killed_process_left_of_several_starts_is_none_of_those_adopted_later(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    starts = [make_start(seed) for seed in range(3)]
    left = written(run.further_folder / starts[2].start.sha256, starts[2])
    assert (run.start_folders(), run.further_starts()) == ({}, [])
    run.adopt_start(*(written(tmp_path / str(seed), starts[seed]) for seed in range(2)))
    assert run.further_starts() == [starts[1]] and not left.exists()


def handed_out(run: RunDirectory, begun: LoadedStart) -> bytes:
    with closing(Broadcast.start(run, begun.start.sha256)) as broadcast:
        return broadcast.manifest


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("is_there", [True, False], ids=["a flipped bit", "missing"])
def test_a_damaged_one_of_several_starts_is_named_handed_out_to_nobody_and_mended_when_given_again(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart], name: str, is_there: bool
) -> None:
    starts = [make_start(seed) for seed in range(3)]
    folders = [written(tmp_path / str(seed), begun) for seed, begun in enumerate(starts)]
    run.adopt_start(*folders)
    identity = starts[1].start.sha256
    file = run.start_folders()[identity] / name
    kept = file.read_bytes()
    file.write_bytes(kept[:-2] + bytes([kept[-2] ^ 1, kept[-1]])) if is_there else file.unlink()
    with pytest.raises(StorageError, match=f"the start {identity[:12]}….* is damaged .* all of them"):
        run.further_starts()
    with pytest.raises(FederationError):
        Broadcast.start(run, identity)
    for each in (starts[0], starts[2]):
        assert handed_out(run, each) == encode_start(each.start)
    run.adopt_start(folders[0], folders[1])
    assert {each.start.sha256 for each in run.further_starts()} == {each.start.sha256 for each in starts[1:]}
    assert handed_out(run, starts[1]) == encode_start(starts[1].start)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_first_start_that_lost_a_file_is_damaged_not_absent_and_loses_no_other(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart], name: str
) -> None:
    folders = [written(tmp_path / str(seed), make_start(seed)) for seed in range(2)]
    run.adopt_start(*folders)
    (run.start_folder / name).unlink()
    with pytest.raises(StorageError, match="a file of it is missing"):
        run.start()
    run.adopt_start(folders[0])
    assert (run.start(), run.further_starts()) == (make_start(0), [make_start(1)])


def test_an_event_of_a_time_that_is_on_no_calendar_is_passed_over() -> None:
    times = ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-01-01T00:00:00+00:00")
    fields = {"stage": "learn", "kind": "started", "values": {}}
    assert len(list(events_from_lines(json.dumps({"time": each, **fields}) for each in times))) == 1


@pytest.mark.parametrize("wrong", [None, "\x1b[31m", [], {}, float("nan"), 10**400, -1, True, 1.5])
@pytest.mark.parametrize("name", ["iteration", "of", "gpu_bytes", "images"])
def test_an_event_that_counts_by_no_number_is_passed_over(name: str, wrong: object) -> None:
    kind = "recovered" if name == "images" else "progress"
    good = {"images": 3} if kind == "recovered" else {"iteration": 1, "of": 2, "loss": math.inf}
    lines = [event_to_line(Event("learn", kind, values)) for values in (good, {**good, name: wrong})]
    assert [event.values for event in events_from_lines(lines)] == [good]


def test_what_was_recovered_is_read_in_one_order_whatever_order_it_was_written_in(run: RunDirectory) -> None:
    run.write_recovered({name: torch.zeros(1, 1, 2, 2, dtype=torch.uint8) for name in "hbfdaceg"})
    assert [list(run.read_recovered()) for _ in range(3)] == [list("abcdefgh")] * 3


@pytest.mark.parametrize("name", ["server.toml", "start.sha256", "error.txt", "meta_learner.manifest.pb"])
def test_a_folder_in_the_place_of_a_file_is_not_taken_for_a_file_that_is_not_there(
    run: RunDirectory, name: str
) -> None:
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()
    with pytest.raises(StorageError, match=f"{run.path / name} is a folder where a file is expected"):
        RunStatus.read(RunDirectory(run.path))
