"""Every failure of the run book, brought about: what is printed is what docs/operate.md says."""

import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.finding import hash_images
from client.training.ledger import open_ledger
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, MetaLearner, Provenance, encode_contribution, encode_weights
from fedfree.host.cli import FAILED, INTERRUPTED, OWN_FAULT, WRONG_INPUT
from fedfree.host.files import write_file
from fedfree.host.supervise import signals_raise
from fedfree.statement import DpSgd, PrivacyStatement
from server.config import ServerConfig
from server.doors.tokens import Tokens
from server.events import ignore
from server.storage.checkpoint import write_checkpoint
from server.storage.run_directory import RunDirectory
from server.storage.store import RECEIVED, WEIGHTS
from server.verify.verify import verify_received
from tests.doors import serving
from tests.programs import run_here

PAGE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text()
SPEC = InputSpec(channels=1, height=16, width=16)
SMALL = {
    "iterations": 1,
    "threads": 1,
    "device": "cpu",
    "collect": {"quorum": 1},
    "invert": {"models_per_iteration": 1, "images_per_model": 12, "steps": 1, "generator_width": 4},
    "learn": {"batch_size": 8, "compositions": 4, "relational_tasks": 1},
}
LOG = "log"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own two lines."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


BOOK = [(fragment.strip("`"), status) for fragment, status, *_ in rows("Run book")]


def pattern(fragment: str) -> str:
    """A regular expression for what the page prints, with an ellipsis where it differs from case to case."""
    return ".+?".join(map(re.escape, fragment.split("…")))


@dataclass
class Desk:
    """An operator's desk: a folder, and a terminal."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def says(self, program: str, command: str, *arguments: object) -> tuple[int, str]:
        """Exit status of a command, and all that it prints."""
        ended, out, said = run_here(self.monkeypatch, self.capfd, program, *command.split(), *arguments)
        return ended, out + said

    def run(self, *, models: int = 0, **changes: object) -> RunDirectory:
        """A run directory that some models have reached."""
        config = ServerConfig.checked(SMALL | changes)
        write_file(self.folder / "run" / "server.toml", config.to_commented_toml().encode())
        run = RunDirectory(self.folder / "run")
        for seed in range(models):
            run.store().receive(*contribution(seed))
        return run

    def images(self) -> Path:
        """Two classes of four."""
        random = np.random.default_rng(0)
        for name in "ab":
            (self.folder / "images" / name).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(self.folder / "images" / name / f"{index}.png")
        return self.folder / "images"

    def token(self, text: str = "wrong") -> Path:
        """A file that holds one."""
        write_file(self.folder / "token", text.encode())
        return self.folder / "token"

    def asks(self, command: str, address: object, *more: object) -> tuple[int, str]:
        """What an organisation is told at the second door; it does not try again."""
        self.monkeypatch.setattr("client.doors.grpc_remote.PAUSES_SECONDS", ())
        door = ("--from", address, "--insecure", "--token-file", self.folder / "token")
        return self.says("client", command, *door, *more)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, monkeypatch, capfd)


def weights(seed: int) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return encode_weights(build(Architecture(), num_classes=3, input=SPEC))


def contribution(seed: int) -> tuple[bytes, bytes]:
    made = Contribution(Architecture(), 3, SPEC, PrivacyStatement(), weights(seed))
    return encode_contribution(made), made.weights


def publish(run: RunDirectory, recipe: Recipe | None = None) -> None:
    provenance = Provenance(("ab" * 32,), "cd" * 32, 0, "fedfree")
    run.write_meta_learner(MetaLearner(Architecture(), 3, SPEC, recipe or Recipe(), provenance, weights(0)))


def too_few(desk: Desk) -> tuple[int, str]:
    return desk.says("server", "resume", desk.run().path)


def held(desk: Desk) -> tuple[int, str]:
    run = desk.run()
    with run.held():
        return desk.says("server", "resume", run.path)


def unreachable(desk: Desk) -> tuple[int, str]:
    desk.token()
    with socket.socket() as taken:  # bound and not listening: nobody else is given its port
        taken.bind(("127.0.0.1", 0))
        return desk.asks("status", f"127.0.0.1:{taken.getsockname()[1]}")


def wrong_token(desk: Desk) -> tuple[int, str]:
    desk.token()
    with serving(desk.run()) as address:
        return desk.asks("status", address)


def changed_by_the_disk(desk: Desk) -> tuple[int, str]:
    run = desk.run(models=1)
    store = run.store()
    (identity,) = store.ids(RECEIVED)
    verify_received(store, ignore)
    flip(store.path / "accepted" / identity / WEIGHTS)
    return desk.says("server", "resume", run.path)


def damaged_checkpoint(desk: Desk) -> tuple[int, str]:
    run = desk.run(models=1)
    write_checkpoint(run.checkpoint, "run", 1, {"weights": torch.zeros(9)})
    flip(run.checkpoint)
    return desk.says("server", "resume", run.path)


def damaged_meta_learner(desk: Desk) -> tuple[int, str]:
    run = desk.run()
    publish(run)
    flip(run.manifest)
    desk.token(Tokens(run.tokens).add("clinic"))
    with serving(run) as address:
        return desk.asks("fetch", address)


def another_preset(desk: Desk) -> tuple[int, str]:
    run = desk.run(models=1)
    run.server_toml.write_text('preset = "start"\n')
    return desk.says("server", "resume", run.path)


def cut_photo(desk: Desk) -> tuple[int, str]:
    photo = desk.images() / "a" / "0.png"
    photo.write_bytes(photo.read_bytes()[:60])
    return desk.says("client", "pretrain", "--data", desk.folder / "images", "--image-size", 16)


def budget_used_up(desk: Desk) -> tuple[int, str]:
    images = desk.images()
    before = DpSgd(noise_multiplier=2.0, sampling_rate=0.5, steps=10)
    open_ledger(None).reserve("before", hash_images(images), before, delta=1e-3, epsilon_budget=None)
    private = ("--epsilon", 8, "--delta", 1e-3, "--epsilon-budget", 8, "--image-size", 16, "--epochs", 1)
    return desk.says("client", "pretrain", "--data", images, *private)


def beyond_the_limits(desk: Desk) -> tuple[int, str]:
    run = desk.run()
    publish(run, Recipe("gradient", steps=6))
    desk.token(Tokens(run.tokens).add("clinic"))
    write_file(desk.folder / "client.toml", b"[limits]\nrecipe_steps = 5\n")
    with serving(run) as address:
        return desk.asks("fetch", address, "--limits", "client.toml")


def full_disk(desk: Desk) -> tuple[int, str]:
    run = desk.run(models=1)
    run.events.symlink_to("/dev/full")
    return desk.says("server", "resume", run.path)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


PROVOKED: list[tuple[str, Callable[[Desk], tuple[int, str]]]] = [
    ("accepted contributions, the quorum is", too_few),
    ("another process runs in", held),
    ("the coordinator cannot be reached", unreachable),
    ("the token is wrong or was revoked", wrong_token),
    ("verify damaged", changed_by_the_disk),
    ("passed over the checkpoint", damaged_checkpoint),
    ("the meta-learner is just being replaced, or is damaged", damaged_meta_learner),
    ("is configured with preset", another_preset),
    ("cannot read the image", cut_photo),
    ("more than the budget of", budget_used_up),
    ("the meta-learner's recipe asks for", beyond_the_limits),
    ("No space left on device", full_disk),
]
"""Words of a row, and what brings it about."""


def test_every_row_of_the_run_book_is_brought_about_here_and_nothing_else() -> None:
    assert len(BOOK) == len(PROVOKED) >= 10
    assert [[words in fragment for fragment, _ in BOOK].count(True) for words, _ in PROVOKED] == [1] * len(
        BOOK
    )


@pytest.mark.parametrize(("words", "provoke"), PROVOKED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_printed_is_what_the_run_book_says(
    words: str, provoke: Callable[[Desk], tuple[int, str]], desk: Desk
) -> None:
    ((fragment, expected),) = [row for row in BOOK if words in row[0]]
    status, printed = provoke(desk)
    assert re.search(pattern(fragment), printed), f"{fragment}\nis not in\n{printed}"
    assert "Traceback" not in printed
    assert expected in (LOG, str(status)), printed


def test_the_table_of_exit_statuses_has_those_that_the_programs_end_with() -> None:
    with pytest.raises(SystemExit) as told, signals_raise():
        signal.raise_signal(signal.SIGTERM)
    ours = {0, FAILED, WRONG_INPUT, OWN_FAULT, INTERRUPTED, told.value.code}
    assert [int(number) for number, _ in rows("Exit statuses")] == sorted(ours)
