"""Removal: what comes out is, to the byte, what a run gives that never had the removed contribution."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, decode_meta_learner, encode_contribution, encode_weights
from fedfree.errors import ConfigError, FederationError
from fedfree.host.files import write_file
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.events import Event, ignore
from server.removal import find, remove
from server.run import learn_held
from server.storage.checkpoint import write_checkpoint
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, QUARANTINED
from server.verify.verify import verify_received

GREY = InputSpec(channels=1, height=16, width=16)
VALUES = {
    "iterations": 2,
    "threads": 1,
    "device": "cpu",
    "invert": {"models_per_iteration": 3, "images_per_model": 12, "steps": 2, "generator_width": 4},
    "learn": {"batch_size": 16, "compositions": 12, "relational_tasks": 3},
}
TINY = ServerConfig.parse(VALUES, origin="test")


def make_run_directory(path: Path, config: ServerConfig) -> RunDirectory:
    write_file(path / "server.toml", config.to_toml().encode())
    return RunDirectory(path)


def make_run(path: Path) -> RunDirectory:
    """A run of four models, nothing looked at yet."""
    run = make_run_directory(path, TINY)
    for seed in range(4):
        torch.manual_seed(seed)
        weights = encode_weights(build(Architecture(), num_classes=2 + seed, input=GREY))
        contribution = Contribution(Architecture(), 2 + seed, GREY, PrivacyStatement(), weights)
        run.store().receive(encode_contribution(contribution), weights)
    return run


def content(run: RunDirectory) -> dict[str, bytes]:
    """All that a run publishes."""
    return {each.name: each.read_bytes() for each in (run.manifest, run.weights, run.recovered)}


@pytest.mark.parametrize("count", [1, 2])
def test_learned_again_is_to_the_byte_what_a_run_gives_that_never_had_it(tmp_path: Path, count: int) -> None:
    run, never = make_run(tmp_path / "had"), make_run(tmp_path / "never")
    learn_held(run)
    before = content(run)
    removed = run.store().ids(ACCEPTED)[:count]
    for identity in removed:
        never.store().quarantine(identity, "never there")
    learn_held(never)
    events: list[Event] = []
    prefixes = [each[:8] for each in removed]
    assert remove(run, prefixes, "they asked", events.append, by="the coordinator") == removed
    assert [event.values["contribution"] for event in events] == removed
    learn_held(run)
    assert content(run) == content(never) != before
    learned = decode_meta_learner(run.manifest.read_bytes(), run.weights.read_bytes())
    assert not set(removed) & set(learned.provenance.contributions)


def test_nothing_that_was_learned_from_it_stays_and_it_never_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    learn_held(run)
    old, removed = content(run), run.store().ids(ACCEPTED)[1]
    message = run.store().read(removed)
    remove(run, [removed], "they asked", ignore, by="someone")
    on_disk = [each.read_bytes() for each in run.path.rglob("*") if each.is_file()]
    assert not any(each in on_disk for each in old.values())
    reason = run.store().reason(removed)
    assert reason.startswith("removed by someone on 20") and reason.endswith("Z: they asked")
    run.store().receive(*message)
    verify_received(run.store(), ignore)
    assert run.store().place_of(removed) == QUARANTINED


def test_a_checkpoint_that_did_not_use_it_stays_and_one_that_did_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    verify_received(run.store(), ignore)
    first, second, *_ = run.store().ids(ACCEPTED)
    write_checkpoint(run.checkpoint, "run", 1, {}, [second])
    remove(run, [first], "they asked", ignore)
    assert run.checkpoint.exists()
    remove(run, [second], "they asked", ignore)
    assert not run.checkpoint.exists()


def test_given_again_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    learn_held(run)
    removed = run.store().ids(ACCEPTED)[0]
    remove(run, [removed], "they asked", ignore, by="someone")
    reason = run.store().reason(removed)
    assert remove(run, [removed[:9]], "again", ignore) == [removed]
    assert run.store().reason(removed) == reason


def test_one_that_waits_is_removed_before_anything_is_learned_from_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    waiting = run.store().all_ids()[0]
    remove(run, [waiting], "they asked", ignore)
    verify_received(run.store(), ignore)
    assert waiting not in run.store().ids(ACCEPTED)


def test_a_prefix_that_does_not_name_one_or_no_reason_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    learn_held(run)
    before = content(run)
    for prefix in ("", "zz"):
        with pytest.raises(ConfigError, match=f"'{prefix}' names none of 4 contributions: give more"):
            remove(run, [run.store().ids(ACCEPTED)[0], prefix], "they asked", ignore)
    with pytest.raises(FederationError, match=r"1 contributions would be left, the quorum is 2: .*nothing"):
        remove(run, run.store().ids(ACCEPTED)[:3], "they asked", ignore)
    with pytest.raises(ConfigError, match="no reason is given"):
        remove(run, run.store().ids(ACCEPTED)[:1], " ", ignore)
    assert content(run) == before and len(run.store().ids(ACCEPTED)) == 4


def test_a_prefix_of_several_names_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("abc1", "abc2"):
        (run.store().path / ACCEPTED / name).mkdir()
    with pytest.raises(ConfigError, match="'abc' names abc1…, abc2… of 6 contributions"):
        find(run.store(), ["abc"])


def make_run_of_starts(
    path: Path, starts: Sequence[LoadedStart], contribute_from: Callable[..., tuple[bytes, bytes]]
) -> tuple[RunDirectory, list[str]]:
    """A run of two starts, with two models of the first and three of the further one; also their ids."""
    run = make_run_directory(path, ServerConfig.parse(VALUES | {"preset": "start"}, origin="test"))
    folders = [path / "given" / str(number) for number in range(len(starts))]
    for folder, begun in zip(folders, starts, strict=True):
        write_start(folder, begun.start, begun.weights)
    run.adopt_start(*folders)
    taken = [starts[0]] * 2 + [starts[1]] * 3
    return run, [run.store().receive(*contribute_from(each, seed)) for seed, each in enumerate(taken)]


@pytest.mark.parametrize("count", [1, 2])
def test_learned_again_from_several_starts_it_is_to_the_byte_what_a_run_gives_that_never_had_it(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
    count: int,
) -> None:
    starts = make_start(0), make_start(1, architecture="conv4-64-group", channels=3)
    run, ids = make_run_of_starts(tmp_path / "had", starts, contribute_from)
    never, _ = make_run_of_starts(tmp_path / "never", starts, contribute_from)
    learn_held(run)
    before, removed = content(run), ids[-count:]
    for identity in removed:
        never.store().quarantine(identity, "never there")
    learn_held(never)
    assert remove(run, removed, "they asked", ignore) == removed
    learn_held(run)
    assert content(run) == content(never) != before


def test_the_last_that_began_where_the_meta_learner_does_is_not_removed(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    starts = make_start(0), make_start(1)
    run, ids = make_run_of_starts(tmp_path, starts, contribute_from)
    verify_received(run.store(), ignore)
    with pytest.raises(FederationError, match=f"began from {starts[0].start.sha256[:12]}….* nothing was rem"):
        remove(run, ids[:2], "they asked", ignore)
    assert len(run.store().ids(ACCEPTED)) == 5
    assert remove(run, ids[:1], "they asked", ignore) == ids[:1]
