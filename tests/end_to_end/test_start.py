"""A start over Flower: the real apps on both sides, in one process, with nothing trained."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from client.config import ClientConfig, DataConfig, TrainingConfig
from client.doors.flower_app import app as client_app
from fedfree.host.starts import load_start, write_start
from fedfree.start import LoadedStart
from server.config import CollectConfig
from server.doors import flower_app as server_app
from server.events import Event
from server.storage.signing_key import SigningKey
from server.storage.store import Store
from simulations.federation.grid import InProcessGrid


@pytest.fixture
def trained(
    monkeypatch: pytest.MonkeyPatch, contribute_from: Callable[..., tuple[bytes, bytes]]
) -> list[tuple[int, Path]]:
    """Seed of each organisation that trained, and the folder of the start that it began from."""
    monkeypatch.setattr(server_app, "POLL_SECONDS", 0.01)
    trained: list[tuple[int, Path]] = []

    def pretrain(config: ClientConfig) -> tuple[bytes, bytes]:
        assert config.training.start is not None
        trained.append((config.seed, config.training.start))
        return contribute_from(load_start(config.training.start), config.seed)

    monkeypatch.setattr("client.doors.flower_app.pretrain", pretrain)
    return trained


def test_whoever_lacks_the_start_is_sent_it_once_and_another_start_is_refused(
    tmp_path: Path, make_start: Callable[..., LoadedStart], trained: list[tuple[int, Path]]
) -> None:
    """The first lacks it, the second has a copy, the third has another."""
    copies = {1: make_start(0), 2: make_start(1)}
    (tmp_path / "organisations").mkdir()
    for index in range(3):
        home = tmp_path / f"org-{index}"
        if index in copies:
            write_start(home / "own", copies[index].start, copies[index].weights)
        config = ClientConfig(
            data=DataConfig(source=home / "images"),
            training=TrainingConfig(start=home / "own" if index in copies else None),
            cache=home / "cache",
            seed=index,
        )
        (tmp_path / "organisations" / f"{index}.toml").write_text(config.to_toml())
    store, events = Store(tmp_path / "store", make_start), list[Event]()
    key = SigningKey(tmp_path / "key.json")
    for _ in range(2):
        grid = InProcessGrid(client_app, {"run": str(tmp_path)}, organisations=3)
        server_app.collect(
            grid,
            store,
            CollectConfig(organisations=3),
            events.append,
            partial(key.sign_again, "start", number=0),
        )
    kept = tmp_path / "org-0" / "starts" / make_start(0).start.sha256
    assert sorted(trained) == sorted(2 * [(0, kept), (1, tmp_path / "org-1" / "own")])
    assert load_start(kept) == make_start(0)
    reasons = [str(event.values["reason"]) for event in events if event.kind == "failed"]
    assert len(reasons) == 2 and all(
        f"the start {make_start(1).start.sha256[:12]}…, this federation from the start" in reason
        for reason in reasons
    )
    assert len(store.all_ids()) == 2


def test_of_several_starts_an_organisation_is_sent_the_one_it_chose_and_else_the_first(
    tmp_path: Path, make_start: Callable[..., LoadedStart], trained: list[tuple[int, Path]]
) -> None:
    """The first chooses none, the second by digits, the third by a copy, the fourth one there is not."""
    starts = [make_start(0), make_start(1, architecture="conv4-64-group")]
    digits = {1: starts[1].start.sha256[:10], 3: "0" * 64}
    write_start(tmp_path / "own", starts[1].start, starts[1].weights)
    (tmp_path / "organisations").mkdir()
    for index in range(4):
        config = ClientConfig(
            data=DataConfig(source=tmp_path / "images"),
            training=TrainingConfig(start=tmp_path / "own" if index == 2 else None),
            start_sha256=digits.get(index),
            cache=tmp_path / f"org-{index}" / "cache",
            seed=index,
        )
        (tmp_path / "organisations" / f"{index}.toml").write_text(config.to_toml())
    store, events = Store(tmp_path / "store", lambda: starts[0], lambda: starts[1:]), list[Event]()
    key = SigningKey(tmp_path / "key.json")
    grid = InProcessGrid(client_app, {"run": str(tmp_path)}, organisations=4)
    server_app.collect(
        grid, store, CollectConfig(organisations=4), events.append, partial(key.sign_again, "start", number=0)
    )
    begun = {seed: load_start(folder) for seed, folder in trained}
    assert begun == {0: starts[0], 1: starts[1], 2: starts[1]}
    (failed,) = [str(event.values["reason"]) for event in events if event.kind == "failed"]
    names = ", ".join(f"{each.start.sha256[:12]}…" for each in starts)
    assert failed.endswith(f"none of the federation's starts begin with {'0' * 64}: name one of {names}")
    assert len(store.all_ids()) == 3
