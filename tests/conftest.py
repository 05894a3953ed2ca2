"""What holds for every test."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
