"""What holds for every test."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_tensors, sha256
from fedfree.start import LoadedStart, Start, encode_body, fill_body, trained_tensors
from fedfree.statement import PrivacyStatement
from tests.programs import RunProgram, run_here

LONGEST = (
    "commands/test_every_command.py",
    "end_to_end/test_engines.py",
    "end_to_end/test_kills.py",
    "simulations/attacks/test_sweep.py",
    "server/test_pipeline.py",
    "server/doors/test_page.py",
    "server/test_run.py",
)
"""Files that begin first: a long one that began last would leave the other processes without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all else in its order."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def _home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what belongs to the person who runs it; fixtures of whole modules neither."""
    before = os.environ.get("FEDFREE_HOME")
    os.environ["FEDFREE_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    os.environ.pop("FEDFREE_HOME")
    if before is not None:
        os.environ["FEDFREE_HOME"] = before


@pytest.fixture(autouse=True)
def _home_of_one_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ledger for each test; ``tmp_path`` is otherwise its own."""
    monkeypatch.setenv("FEDFREE_HOME", f"{tmp_path}-home")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command line run in this process sets up logging, to a stream that ends with the test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def run_program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunProgram:
    """``client``, ``server`` or ``simulations`` with words: its exit status, output and errors."""
    return partial(run_here, monkeypatch, capfd)


@pytest.fixture
def make_start() -> Callable[..., LoadedStart]:
    """A start of an architecture, for images of 16 pixels, grey ones by default; another with every seed."""

    def make(
        seed: int = 0, *, architecture: str = "conv4", licence: str = "MIT", channels: int = 1
    ) -> LoadedStart:
        chosen, spec = Architecture.parse(architecture), InputSpec(channels, height=16, width=16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = encode_body(build(chosen, num_classes=2, input=spec))
        return LoadedStart(Start(chosen, sha256(weights), spec, "a test", licence), weights)

    return make


@pytest.fixture
def contribute_from() -> Callable[..., tuple[bytes, bytes]]:
    """What an organisation contributes that began from a start, and trained its last layer and head."""

    def contribute(begun: LoadedStart, seed: int = 0, **changes: object) -> tuple[bytes, bytes]:
        start = begun.start
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + seed)
            network = build(start.architecture, num_classes=3, input=start.input)
            fill_body(network, begun.body, "the start")
            torch.nn.init.normal_(network.get_parameter("blocks.3.0.weight"), std=0.1)
        weights = encode_tensors(trained_tensors(network, begun.body))
        fields: dict[str, object] = {
            "architecture": start.architecture,
            "num_classes": 3,
            "input": start.input,
            "privacy": PrivacyStatement(initial_weights=start.initial_weights),
            "weights": weights,
            "start": start.sha256,
        }
        contribution = Contribution(**(fields | changes))  # type: ignore[arg-type]
        return encode_contribution(contribution), contribution.weights

    return contribute
