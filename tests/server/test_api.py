"""The server as a function: from contributions in memory it learns what the command line does from files."""

import doctest
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import server.api
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, decode_contribution, encode_contribution, encode_weights
from fedfree.errors import ConfigError, FederationError
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server import run as runs
from server.api import learn
from server.config import ServerConfig
from server.events import Event
from server.storage.run_directory import RunDirectory

TINY: dict[str, Any] = {
    "iterations": 2,
    "threads": 1,
    "invert": {"images_per_model": 8, "steps": 1, "generator_width": 4},
    "learn": {"compositions": 8, "relational_tasks": 2, "batch_size": 8},
}


def contribution(seed: int) -> Contribution:
    spec, architecture = InputSpec(3, 16, 16), Architecture()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, num_classes=3, input=spec)
    return Contribution(architecture, 3, spec, PrivacyStatement(), encode_weights(network))


@pytest.fixture
def pool() -> list[Contribution]:
    return [contribution(seed) for seed in range(2)]


def learned_from_files(run: Path, pool: list[Contribution], *start: Path, **settings: Any) -> bytes:
    run.mkdir()
    (run / "server.toml").write_text(ServerConfig.parse(settings, origin="test").to_toml())
    directory = RunDirectory(run)
    if start:
        directory.adopt_start(*start)
    for each in pool:
        directory.store().receive(encode_contribution(each), each.weights)
    runs.learn(directory)
    return directory.weights.read_bytes()


def test_it_learns_what_a_run_directory_learns(tmp_path: Path, pool: list[Contribution]) -> None:
    learned = learn(pool, seed=3, **TINY)
    assert learned.weights == learned_from_files(tmp_path / "run", pool, seed=3, **TINY)
    assert learned == learn(pool[::-1], seed=3, **TINY), "the order decides nothing"
    assert learned.weights != learn(pool, seed=4, **TINY).weights


def test_from_a_start_the_preset_is_the_start_s(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    begun = make_start()
    write_start(tmp_path / "start", begun.start, begun.weights)
    pool = [decode_contribution(*contribute_from(begun, seed)) for seed in range(2)]
    learned = learn(pool, start=tmp_path / "start", **TINY)
    assert learned.recipe.head == "ridge" and learned.provenance.start == begun.start.sha256
    settings = {"preset": "start", **TINY}
    assert learned.weights == learned_from_files(tmp_path / "run", pool, tmp_path / "start", **settings)
    with pytest.raises(ConfigError, match="preset default"):
        learn(pool, start=tmp_path / "start", preset="default", **TINY)


def test_it_shows_what_it_recovered_of_each_contribution(pool: list[Contribution]) -> None:
    recovered: dict[str, torch.Tensor] = {}
    learned = learn(pool, on_recovered=recovered.update, **TINY)
    assert recovered.keys() == set(learned.provenance.contributions)
    for images in recovered.values():
        assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8


def test_what_is_refused_is_left_out_and_said(
    pool: list[Contribution], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    broken = replace(pool[0], weights=pool[0].weights[:-4])
    with caplog.at_level(logging.WARNING):
        learned = learn([*pool, broken], on_event=events.append, **TINY)
    assert len(learned.provenance.contributions) == 2
    assert [record.getMessage() for record in caplog.records if "is left out: " in record.getMessage()]
    assert {"quarantined", "accepted", "progress"} <= {event.kind for event in events}


def test_what_cannot_be_learned_from_is_refused(pool: list[Contribution]) -> None:
    with pytest.raises(ConfigError, match=r"expected contributions .*, got a bytes"):
        learn([b"weights"])  # type: ignore[list-item]
    with pytest.raises(FederationError, match="1 accepted contributions, the quorum is 2"):
        learn(pool[:1])
    with pytest.raises(ConfigError, match=r"learn: .*iteration"):
        learn(pool, iteration=3)


def test_the_example_in_the_docstring_holds(pool: list[Contribution]) -> None:
    told = doctest.testmod(server.api, extraglobs={"contributions": pool})
    assert told.attempted == 2 and told.failed == 0


@pytest.mark.parametrize("wrong", [None, contribution(0)], ids=["none", "one"])
def test_what_is_no_list_of_contributions_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of contributions, got a "):
        learn(wrong, **TINY)


def test_contributions_may_come_one_by_one(pool: list[Contribution]) -> None:
    assert learn(iter(pool), **TINY).weights == learn(pool, **TINY).weights
