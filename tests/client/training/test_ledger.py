"""The ledger: nothing begun is forgotten, nothing is spent beyond the budget, whatever is killed when."""

import copy
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.config import ClientConfig, DataConfig, PrivacyConfig, TrainingConfig
from client.training import ledger as ledgers
from client.training import pretrain as contribution
from client.training.cache import MANIFEST, RESERVATION, WEIGHTS
from client.training.fit import Untrained
from client.training.ledger import RESERVED, SPENT, Ledger
from client.training.pretrain import pretrain
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import contribution_id, describe_contribution
from fedfree.errors import ConfigError, PrivacyError, StorageError
from fedfree.statement import DpSgd

RUN = DpSgd(2.0, 0.5, 10)
BUDGET = 7.0
INPUT = InputSpec(channels=1, height=16, width=16)
UNTRAINED = Untrained(build(Architecture(norm="group"), num_classes=2, input=INPUT), INPUT)


def cost(runs: Sequence[DpSgd], delta: float) -> float:
    """A quick accountant in the place of the exact one: five runs fit into the budget, six do not."""
    return 3.0 * len(runs) ** 0.5


def write_images(folder: Path, count: int = 2) -> Path:
    for label in range(2):
        (folder / f"{label}").mkdir(parents=True)
        for index in range(count):
            shade = torch.full((16, 16), 100 * label + index, dtype=torch.uint8)
            Image.fromarray(shade.numpy()).save(folder / f"{label}" / f"{index}.png")
    return folder


def configure(folder: Path, images: Path, **privacy: float) -> ClientConfig:
    return ClientConfig(
        data=DataConfig(source=images),
        training=TrainingConfig(architecture=Architecture(norm="group"), image_size=16, threads=1),
        privacy=PrivacyConfig(epsilon=3, epsilon_budget=BUDGET, **privacy),
        cache=folder / "models",
        ledger=folder / "ledger.sqlite",
    )


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Stand-ins for planning, accounting and training, so that hundreds of contributions take seconds."""

    def train(untrained: Untrained, *_: object, **__: object) -> float:
        with torch.no_grad():
            untrained.network.head.get_parameter("bias").add_(int.from_bytes(os.urandom(1), "big") + 1)
        return 3.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contribution, "plan", lambda *_, **__: RUN)
        patch.setattr(contribution, "initialise", lambda *_, **__: copy.deepcopy(UNTRAINED))
        patch.setattr(contribution, "train_privately", train)
        patch.setattr(ledgers, "composed_epsilon", cost)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("private") / "images")


def begun(log: Path) -> int:
    return len(log.read_bytes()) if log.exists() else 0


def logging_begin(log: Path, then: Callable[[], None] = lambda: None) -> Callable[..., float]:
    """A trainer that first leaves a mark on disk, the truth that the ledger is held against."""
    train = contribution.train_privately

    def begin(*given: object, **more: object) -> float:
        with log.open("ab") as file:
            file.write(b".")
        then()
        return train(*given, **more)  # type: ignore[arg-type]

    return begin


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(action: Callable[[], object]) -> int:
    """Run in a process of its own; returns the signal that killed it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except PrivacyError:
            pass
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contribute_and_die(config: ClientConfig, log: Path, stage: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            contribution, "train_privately", logging_begin(log, die if stage == "training" else lambda: None)
        )
        if stage == "caching":
            patch.setattr(Path, "rename", lambda *_: die())
        if stage == "spending":
            patch.setattr(Ledger, "spend", lambda *_: die())
        pretrain(config)


ACTIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["", "", "", "training", "caching", "spending"])),
    min_size=1,
    max_size=4,
)
"""Contributions by seed, and where the process is killed."""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(actions=ACTIONS)
def test_no_interleaving_of_contributions_and_kills_forgets_or_overspends(
    images: Path, actions: list[tuple[int, str]]
) -> None:
    check_interleaving(images, actions)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@settings(max_examples=200, deadline=None, database=None)
@given(actions=ACTIONS)
def test_two_hundred_random_interleavings_neither_forget_nor_overspend(
    images: Path, actions: list[tuple[int, str]]
) -> None:
    check_interleaving(images, actions)


def check_interleaving(images: Path, actions: list[tuple[int, str]]) -> None:
    """Contribute and be killed in this order, and compare the ledger with what had begun."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = configure(folder, images)
        log = folder / "begun"
        sent: dict[int, tuple[bytes, bytes]] = {}
        for seed, stage in actions:
            mine, before = config.model_copy(update={"seed": seed}), begun(log)
            cached = len(list(config.cache.glob("[!.]*"))) if config.cache.exists() else 0
            if stage:
                in_child(lambda mine=mine, stage=stage: contribute_and_die(mine, log, stage))
            else:
                try:
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(contribution, "train_privately", logging_begin(log))
                        manifest = pretrain(mine)
                    assert sent.setdefault(seed, manifest) == manifest
                except PrivacyError:
                    assert seed not in sent
                    assert cost([RUN] * (before + 1), 1e-5) > BUDGET
            assert len(Ledger(config.ledger_path).entries()) == begun(log)
            assert cost([RUN] * begun(log), 1e-5) <= BUDGET
            assert not config.cache.exists() or len(list(config.cache.glob("[!.]*"))) >= cached
        recorded = {entry.contribution for entry in Ledger(config.ledger_path).entries()}
        assert {contribution_id(manifest) for manifest, _ in sent.values()} <= recorded


@pytest.mark.parametrize("stage", ["training", "caching", "spending"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_contribution_stays_reserved_and_a_cached_one_is_sent_at_no_cost(
    tmp_path: Path, stage: str
) -> None:
    config = configure(tmp_path, write_images(tmp_path / "images"))
    log = tmp_path / "begun"
    assert in_child(lambda: contribute_and_die(config, log, stage)) == -signal.SIGKILL
    assert [entry.state for entry in Ledger(config.ledger_path).entries()] == [RESERVED]
    manifest, _ = pretrain(config)
    entries = Ledger(config.ledger_path).entries()
    assert [entry.state for entry in entries] == ([SPENT] if stage == "spending" else [RESERVED, SPENT])
    assert entries[-1].contribution == contribution_id(manifest)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_at_once_do_not_overspend(tmp_path: Path) -> None:
    config = configure(tmp_path, write_images(tmp_path / "images"))
    log = tmp_path / "begun"
    children = []
    for seed in range(8):
        child = os.fork()
        if child == 0:
            try:
                contribute_and_die(config.model_copy(update={"seed": seed}), log, "")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert begun(log) == len(Ledger(config.ledger_path).entries()) == 5


def test_only_contributions_that_share_an_image_compose(tmp_path: Path) -> None:
    many = write_images(tmp_path / "many", count=4)
    pretrain(configure(tmp_path, many))
    few = configure(tmp_path, many)
    few = few.model_copy(update={"data": DataConfig(source=many, images_per_class=2)})
    larger = few.training.model_copy(update={"image_size": 20})
    other = write_images(tmp_path / "other", count=7)
    for folder in other.iterdir():
        for index in range(4):
            (folder / f"{index}.png").unlink()
    compositions = [
        describe_contribution(pretrain(config)[0]).privacy.differential_privacy.composition.contributions
        for config in (few, few.model_copy(update={"training": larger}), configure(tmp_path, other))
    ]
    assert compositions == [2, 3, 1]


def test_a_contribution_without_privacy_is_remembered_and_no_budget_holds_after_it(tmp_path: Path) -> None:
    images = frozenset({"a", "b"})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.spend("first", images, "id")
    composition = ledger.reserve("second", images, RUN, delta=1e-5, epsilon_budget=None)
    assert (composition.contributions, composition.without_differential_privacy) == (1, 1)
    with pytest.raises(PrivacyError, match="without differential privacy before"):
        ledger.reserve("third", images, RUN, delta=1e-5, epsilon_budget=100)
    assert len(ledger.entries()) == 2


def test_a_refusal_names_the_sum_and_the_budget(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("first", frozenset("a"), RUN, delta=1e-5, epsilon_budget=4)
    with pytest.raises(PrivacyError, match=r"the 2 that share .* epsilon 4\.24 .* budget of 4"):
        ledger.reserve("second", frozenset("ab"), RUN, delta=1e-5, epsilon_budget=4)


def test_a_cached_model_enters_a_ledger_that_does_not_know_it(tmp_path: Path) -> None:
    config = configure(tmp_path, write_images(tmp_path / "images"))
    sent = pretrain(config)
    elsewhere = config.model_copy(update={"ledger": tmp_path / "other.sqlite"})
    assert pretrain(elsewhere) == sent
    (entry,) = Ledger(elsewhere.ledger_path).entries()
    assert (entry.state, entry.run) == (SPENT, RUN)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, RESERVATION])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\xff of another release")])
def test_a_private_model_that_cannot_be_read_is_not_trained_again_at_the_budgets_cost(
    tmp_path: Path, images: Path, name: str, damage: Callable[[Path], object]
) -> None:
    config = configure(tmp_path, images)
    first = pretrain(config)
    (cached,) = config.cache.iterdir()
    content = (cached / name).read_bytes()
    damage(cached / name)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"spend as much .* again.* else remove that folder"):
            pretrain(config)
    assert [entry.state for entry in Ledger(tmp_path / "ledger.sqlite").entries()] == [SPENT]
    (cached / name).write_bytes(content)
    assert pretrain(config) == first


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, and long enough to be taken for one" * 40)
    with pytest.raises(ConfigError, match="cannot use the ledger"):
        Ledger(path).entries()
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="no ledger that this release"):
        Ledger(path).entries()


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", None], ids=["empty", "cut off", "damaged"])
def test_a_damaged_ledger_is_refused_with_the_remedy_and_left_as_it_is(
    tmp_path: Path, content: bytes | None
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("one", frozenset(map(str, range(500))), RUN, delta=1e-5, epsilon_budget=None)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    left = ledger.path.read_bytes()
    for use in (ledger.entries, lambda: ledger.spend("two", frozenset("a"), "id")):
        with pytest.raises(StorageError, match=r"ledger.*Do not delete it.*restore it from a backup"):
            use()
    assert ledger.path.read_bytes() == left


def test_whichever_byte_changes_the_rows_are_those_that_were_written_or_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("one", frozenset({"a", "b"}), RUN, delta=1e-5, epsilon_budget=None)
    ledger.spend("two", frozenset({"b"}), "id")
    written, whole = ledger.entries(), ledger.path.read_bytes()
    refused = 0
    for place in [place for place, byte in enumerate(whole) if byte][::3]:
        ledger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert ledger.entries() == written
        except (StorageError, ConfigError):
            refused += 1
    assert refused > 100


def test_a_ledger_of_the_version_before_is_sealed_as_it_is_and_a_row_changed_by_hand_is_refused(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("one", frozenset({"a"}), RUN, delta=1e-5, epsilon_budget=None)
    written = ledger.entries()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.executescript("DROP TABLE seal; PRAGMA user_version = 1")
    assert ledger.entries() == written
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("UPDATE contributions SET steps = 1")
        connection.commit()
    with pytest.raises(StorageError, match=r"changed by something else than fedfree.* restore it"):
        ledger.entries()


def test_another_programs_database_is_not_made_a_ledger(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StorageError, match="is no ledger"):
        Ledger(tmp_path / "other.sqlite").spend("one", frozenset("a"), "id")


def test_a_ledger_held_by_another_process_is_waited_for_aloud_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledgers, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(ledgers, "LOCK_SECONDS", 0.1)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.entries()
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
    hold += "c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, ledger.path], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        with pytest.raises(StorageError, match=f"{ledger.path} was locked by .* for 0.1 s"):
            ledger.entries()
        (waiting,) = [record.getMessage() for record in caplog.records]
        assert waiting.startswith(f"waiting up to 0.1 s for the ledger {ledger.path}, held by ")
        if Path("/proc/locks").exists():
            assert waiting.endswith(f"process {holder.pid}")
    assert ledger.entries() == []


def test_a_ledger_that_cannot_be_made_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot use the ledger .*file/ledger.sqlite"):
        Ledger(tmp_path / "file" / "ledger.sqlite").entries()


def test_a_ledger_copied_by_sqlite_while_it_is_used_holds_the_budget_as_the_original_does(
    tmp_path: Path,
) -> None:
    own, mine = Ledger(tmp_path / "ledger.sqlite"), frozenset("ab")
    for number in range(5):
        own.reserve(f"{number}", mine, RUN, delta=1e-5, epsilon_budget=BUDGET)
    with (
        own._transaction(),
        closing(sqlite3.connect(own.path)) as source,
        closing(sqlite3.connect(tmp_path / "copy.sqlite")) as target,
    ):
        source.backup(target)
    copied = Ledger(tmp_path / "copy.sqlite")
    assert copied.entries() == own.entries()
    with pytest.raises(PrivacyError, match="more than the budget"):
        copied.reserve("sixth", mine, RUN, delta=1e-5, epsilon_budget=BUDGET)
    Ledger(tmp_path / "lost.sqlite").reserve("sixth", mine, RUN, delta=1e-5, epsilon_budget=BUDGET)


def test_whose_images_were_used_is_for_the_owners_eyes_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Ledger(tmp_path / "ledger.sqlite").entries()
    finally:
        os.umask(before)
    assert (tmp_path / "ledger.sqlite").stat().st_mode & 0o777 == 0o600
