"""A process that dies, or finds the disk full, at every step that changes the disk: old or new, never half.

A process of its own (this file, as a program) forks a child for each step: before the n-th write, rename,
removal or sync of a file, or statement of SQLite, the child ends at once, at a sync with half of the file on
disk, or that step fails. Then another child begins afresh and must find the old or the new, and be able to go
on. Inside one COMMIT SQLite answers for itself.
"""

import errno
import os
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from client.adapting.classifier import Description, FewShotClassifier, read_classifier, write_classifier
from client.doors.flower_node import Node, NodeConfig
from client.doors.flower_node import init as init_node
from client.training.ledger import SPENT, Ledger
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    Contribution,
    MetaLearner,
    Provenance,
    contribution_id,
    decode_contribution,
    decode_meta_learner,
    encode_contribution,
    encode_weights,
    sha256,
)
from fedfree.errors import ContributionError, FedFreeError
from fedfree.host.files import read_file, write_file, write_together
from fedfree.host.starts import load_start, write_start
from fedfree.host.tls import read_authority, read_certificate
from fedfree.start import LoadedStart, Start, encode_body
from fedfree.statement import DpSgd, PrivacyStatement
from server.config import CollectConfig, ServerConfig
from server.doors.authority import certificate_pem, make_authority
from server.doors.deployment import Deployment, DeploymentConfig, init
from server.doors.tokens import Tokens
from server.events import ignore
from server.removal import remove
from server.storage.broadcast import Broadcast
from server.storage.checkpoint import read_checkpoint, write_checkpoint
from server.storage.damage import set_damaged_aside
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, QUARANTINED, RECEIVED, Store

INPUT = InputSpec(1, 16, 16)
KILLED, REFUSED = 77, 78
FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


class Steps:
    """Counts what changes files below a folder; harm at the n-th step: 0 is a kill, else an errno."""

    def __init__(self, folder: Path, at: int, harm: int) -> None:
        self._folder, self._left, self._harm = str(folder), at, harm
        sys.addaudithook(self._audit)
        self._fsync = os.fsync
        os.fsync = self._sync
        sqlite3.connect = self._connect

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        is_change = event in ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir")
        paths = [os.fsdecode(each) for each in arguments if isinstance(each, str | bytes)]
        is_change = is_change or bool(event == "open" and arguments[2] & writes)
        if is_change and any(self._folder in each for each in paths):
            self._step()

    def _sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._step(path if path.is_file() else None)
        self._fsync(descriptor)

    def _connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        step = self._step

        class Connection(sqlite3.Connection):
            def execute(self, *words: Any) -> sqlite3.Cursor:
                step(kind=sqlite3.OperationalError)
                return super().execute(*words)

        return Connection(*arguments, **options)

    def _step(self, half: Path | None = None, kind: type[Exception] = OSError) -> None:
        self._left -= 1
        if self._left:
            return
        if not self._harm:
            if half:
                os.truncate(half, half.stat().st_size // 2)
            os._exit(KILLED)
        words = os.strerror(self._harm)
        raise OSError(self._harm, words) if kind is OSError else kind(words)


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    check: Callable[[Path], object]
    """Begins afresh after the harm: asserts old or new, then goes on to the new."""


def message(seed: int) -> tuple[bytes, bytes]:
    torch.manual_seed(seed)
    weights = encode_weights(build(Architecture(), num_classes=2, input=INPUT))
    return encode_contribution(Contribution(Architecture(), 2, INPUT, PrivacyStatement(), weights)), weights


def meta_learner(seed: int) -> MetaLearner:
    return MetaLearner(
        Architecture(), 2, INPUT, Recipe(), Provenance((), "ab" * 32, seed, "x"), message(seed)[1]
    )


def run_of(folder: Path) -> RunDirectory:
    if not (folder / "server.toml").exists():
        config = ServerConfig(collect=CollectConfig(quorum=1))
        write_file(folder / "server.toml", config.to_toml().encode())
    return RunDirectory(folder)


def accepted(folder: Path) -> list[str]:
    store = run_of(folder).store()
    for seed in range(3):
        store.accept(store.receive(*message(seed)))
    run_of(folder).write_meta_learner(meta_learner(0))
    write_checkpoint(run_of(folder).checkpoint, "run", 1, {}, store.ids(ACCEPTED))
    return store.ids(ACCEPTED)


def receive(folder: Path) -> str:
    return Store(folder / "store").receive(*message(0))


def check_received(folder: Path) -> None:
    store = Store(folder / "store")
    assert all(store.read(each) == message(0) for each in store.all_ids())
    store.discard_leftovers()
    assert not list(store.path.glob(".staging-*"))
    assert store.read(receive(folder)) == message(0)


def decide(folder: Path) -> None:
    store = Store(folder / "store")
    first, second = sorted(store.all_ids())
    if store.place_of(first) == RECEIVED:
        store.accept(first)
    if store.place_of(second) == RECEIVED:
        store.quarantine(second, "why")


def check_decided(folder: Path) -> None:
    decide(folder)
    store = Store(folder / "store")
    (first,), (second,) = store.ids(ACCEPTED), store.ids(QUARANTINED)
    assert store.reason(second) == "why" and {store.read(first), store.read(second)} == {
        message(0),
        message(1),
    }


def rotate(folder: Path) -> None:
    Tokens(folder / "tokens.json").rotate("org-1")


def check_tokens(folder: Path) -> None:
    rotate(folder)
    assert Tokens(folder / "tokens.json").organisations() == ["org-1", "org-2"]


def two_tokens(folder: Path) -> None:
    for name in ("org-1", "org-2"):
        Tokens(folder / "tokens.json").add(name)


def save(folder: Path, iterations: int) -> None:
    tensors = {"x": torch.full((100,), float(iterations))}
    write_checkpoint(folder / "checkpoint.safetensors", "run", iterations, tensors)


def check_checkpoint(folder: Path) -> None:
    saved = read_checkpoint(folder / "checkpoint.safetensors", "run")
    assert saved and saved.iterations in (10, 20) and saved.tensors["x"][0] == saved.iterations
    save(folder, 20)


def check_published(folder: Path) -> None:
    run = run_of(folder)
    opened = Broadcast.meta_learner(run)
    learned = decode_meta_learner(run.manifest.read_bytes(), run.weights.read_bytes())
    assert opened.manifest == run.manifest.read_bytes() and learned in (meta_learner(0), meta_learner(1))
    run.write_meta_learner(meta_learner(1))
    assert run.weights.read_bytes() == meta_learner(1).weights and len(list(run._published.iterdir())) == 2


def make_starts(folder: Path) -> None:
    run_of(folder / "run")
    make_starts_alone(folder)


def make_starts_alone(folder: Path) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        weights = encode_body(build(Architecture(), num_classes=2, input=INPUT))
        begun = LoadedStart(Start(Architecture(), sha256(weights), INPUT, "a test", "MIT"), weights)
        write_start(folder / f"start{seed or ''}", begun.start, weights)


def adopt(folder: Path) -> None:
    RunDirectory(folder / "run").adopt_start(folder / "start")


def check_adopted(folder: Path) -> None:
    RunDirectory(folder / "run").start()
    adopt(folder)
    RunDirectory(folder / "run").require_preset()
    assert RunDirectory(folder / "run").start()


def adopt_several(folder: Path) -> None:
    RunDirectory(folder / "run").adopt_start(*(folder / f"start{each}" for each in ("", 1, 2)))


def check_several(folder: Path) -> None:
    run = RunDirectory(folder / "run")
    known = {load_start(folder / f"start{each}").start.sha256: each for each in ("", 1, 2)}
    if run.start():
        first, *further = run.start_folders()
        assert known[first] == "" and len(run.further_starts()) == len(further) == 2
        adopt_several(folder)
    else:  # others may be adopted now, and nothing is left of those
        run.adopt_start(folder / "start1", folder / "start2")
        assert [known[each] for each in run.start_folders()] == [1, 2]
    run.require_preset()
    assert run.start() and run.further_starts()


def take_out(folder: Path) -> None:
    remove(run_of(folder), [message_id(0)], "asked", ignore, by="x")


def message_id(seed: int) -> str:
    return contribution_id(message(seed)[0])


def check_taken_out(folder: Path) -> None:
    take_out(folder)
    run = run_of(folder)
    assert run.store().place_of(message_id(0)) == QUARANTINED and len(run.store().ids(ACCEPTED)) == 2
    assert not run.manifest.exists() and not run.checkpoint.exists() and not run._published.exists()


def damage(folder: Path) -> None:
    (run_of(folder).store().path / ACCEPTED / accepted(folder)[0] / "weights.safetensors").write_bytes(b"x")


def set_aside(folder: Path) -> None:
    set_damaged_aside(run_of(folder).store(), ignore)


def check_set_aside(folder: Path) -> None:
    set_aside(folder)
    store = run_of(folder).store()
    assert len(store.ids(ACCEPTED)) == 2 and all(store.network(each) for each in store.ids(ACCEPTED))


def classify(folder: Path, owls: int) -> None:
    provenance = Provenance((), "cd" * 32, 7, "fedfree")
    support = {"owl": owls, "cat": 1}
    fields = {"calibration": None, "meta_learner": "ef" * 32, "provenance": provenance}
    description = Description(
        architecture=Architecture(), input=INPUT, recipe=Recipe(), support=support, **fields
    )
    write_classifier(FewShotClassifier(description), folder / "classifier.safetensors")


def check_classifier(folder: Path) -> None:
    assert read_classifier(folder / "classifier.safetensors").description.support["owl"] in (1, 2)
    classify(folder, 2)


def spend(folder: Path) -> None:
    ledger, run = Ledger(folder / "ledger.sqlite"), DpSgd(2.0, 0.5, 10)
    if not ledger.knows("one"):
        ledger.reserve("one", frozenset({"a"}), run, delta=1e-5, epsilon_budget=None)
    write_file(folder / "trained", b"")
    ledger.spend("one", frozenset({"a"}), "id")


def check_ledger(folder: Path) -> None:
    rows = Ledger(folder / "ledger.sqlite").entries()
    assert len(rows) == 1 or not (folder / "trained").exists(), "trained, and nothing is written down"
    assert all(each.run == DpSgd(2.0, 0.5, 10) and each.images == 1 for each in rows)
    spend(folder)
    assert [each.state for each in Ledger(folder / "ledger.sqlite").entries()] == [SPENT]


def contribution(folder: Path, seed: int) -> None:
    manifest, weights = message(seed)
    write_together({folder / "manifest.pb": manifest, folder / "weights.safetensors": weights})


def check_contribution(folder: Path) -> None:
    try:
        decode_contribution(*(read_file(folder / each) for each in ("manifest.pb", "weights.safetensors")))
    except ContributionError as error:
        assert "make or fetch both anew" in str(error)
    contribution(folder, 1)
    assert (folder / "weights.safetensors").read_bytes() == message(1)[1]


def make_coordinator(folder: Path) -> None:
    init(folder / "run", ["localhost"], DeploymentConfig(), CollectConfig(), starts=[folder / "start"])


def check_coordinator(folder: Path) -> None:
    if not (folder / "run" / "deployment.toml").exists():
        make_coordinator(folder)
    made = Deployment(folder / "run")
    read_certificate(made.certificate, made.key)
    made.run.require_preset()
    assert made.run.start() and made.config() == DeploymentConfig() and made.key.stat().st_mode & 0o77 == 0


def write_authority(folder: Path) -> None:
    write_file(folder / "ca.crt", certificate_pem(make_authority()[0]))


def make_node(folder: Path) -> None:
    init_node(folder / "node", NodeConfig(server="localhost:8000"), folder / "ca.crt", folder)


def check_node(folder: Path) -> None:
    if not (folder / "node" / "node.toml").exists():
        make_node(folder)
    made = Node(folder / "node")
    assert read_authority(made.authority) and made.key.is_file() and made.client_toml.is_file()


SCENARIOS = {
    "receive": Scenario(lambda folder: None, receive, check_received),
    "decide": Scenario(
        lambda f: [Store(f / "store").receive(*message(n)) for n in (0, 1)], decide, check_decided
    ),
    "tokens": Scenario(two_tokens, rotate, check_tokens),
    "checkpoint": Scenario(lambda f: save(f, 10), lambda f: save(f, 20), check_checkpoint),
    "publish": Scenario(
        lambda f: run_of(f).write_meta_learner(meta_learner(0)),
        lambda f: run_of(f).write_meta_learner(meta_learner(1)),
        check_published,
    ),
    "start": Scenario(make_starts, adopt, check_adopted),
    "starts": Scenario(make_starts, adopt_several, check_several),
    "remove": Scenario(accepted, take_out, check_taken_out),
    "damage": Scenario(damage, set_aside, check_set_aside),
    "classifier": Scenario(lambda f: classify(f, 1), lambda f: classify(f, 2), check_classifier),
    "ledger": Scenario(lambda folder: None, spend, check_ledger),
    "contribution": Scenario(lambda f: contribution(f, 0), lambda f: contribution(f, 1), check_contribution),
    "coordinator": Scenario(make_starts_alone, make_coordinator, check_coordinator),
    "node": Scenario(write_authority, make_node, check_node),
}


def forked(work: Callable[[], object]) -> int:
    """Exit status of a child that does some work."""
    child = os.fork()
    if not child:
        try:
            work()
        except FedFreeError as error:
            sys.stderr.write(f"{error}\n")
            os._exit(REFUSED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def try_all(scenario: Scenario, folder: Path, harm: int) -> int:
    """Do harm at each step in turn; how many steps there were."""
    torch.set_num_threads(1)
    unharmed = folder / "unharmed"  # imports for all children what is imported late
    unharmed.mkdir()
    for each in (scenario.prepare, scenario.act, scenario.check):
        each(unharmed)
    for at in range(1, 1000):
        place = folder / f"step-{at}"
        place.mkdir()
        assert forked(lambda place=place: scenario.prepare(place)) == 0  # type: ignore[misc]

        def act(place: Path = place, at: int = at) -> None:
            steps = Steps(place, at, harm)
            scenario.act(place)
            os._exit(2 if steps._left > 0 else 0)  # 2: there was no such step

        ended = forked(act)
        assert ended in (0, 2, REFUSED if harm else KILLED), f"step {at} ended with {ended}"
        assert forked(lambda place=place: scenario.check(place)) == 0, f"after step {at}"  # type: ignore[misc]
        if ended == 2:
            return at - 1
    raise AssertionError("it never ended")


QUICK = ("receive", "decide", "tokens", "checkpoint", "classifier", "ledger", "contribution", "node")


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        pytest.param(0, QUICK, id="killed-quick"),
        *(pytest.param(harm, tuple(SCENARIOS), marks=pytest.mark.slow) for harm in (0, FULL, READ_ONLY)),
    ],
)
def test_whatever_happens_at_whatever_step_old_or_new_is_there_and_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: int, names: tuple[str, ...]
) -> None:
    paths = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(tmp_path), str(harm), *names]
    done = subprocess.run(words, env=os.environ | paths, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        sys.stdout.write(f"\n{done.stdout}")


if __name__ == "__main__":
    where, harm = Path(sys.argv[1]), int(sys.argv[2])
    counts = {}
    for name in sys.argv[3:]:
        (where / name).mkdir()
        sys.stdout.write(f"{name}: ")
        sys.stdout.flush()
        counts[name] = try_all(SCENARIOS[name], where / name, harm)
        sys.stdout.write(f"{counts[name]} steps, ")
    sys.stdout.write(f"{sum(counts.values())} in all\n")
