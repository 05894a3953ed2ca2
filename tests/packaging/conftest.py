"""What FedFREE is installed with, from pyproject.toml and the metadata of the packages installed here."""

import functools
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = ""


def declared(extra: str) -> list[Requirement]:
    """What an extra lists, or with BASE what comes without one; its references to other extras followed."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found = []
    for requirement in map(Requirement, listed):
        if requirement.name == PROJECT["name"]:
            found += [each for other in sorted(requirement.extras) for each in declared(other)]
        else:
            found.append(requirement)
    return found


@functools.cache
def brought(*extras: str) -> frozenset[str]:
    """Names of all packages that ``pip install fedfree[extras]`` brings, however deep."""
    waiting = [each for extra in (BASE, *extras) for each in declared(extra)]
    seen = set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {BASE, *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [
                need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})
            ]
    return frozenset(name for name, _ in seen)


@pytest.fixture(scope="session", name="declared")
def declared_fixture() -> Callable[[str], list[Requirement]]:
    return declared


@pytest.fixture(scope="session", name="brought")
def brought_fixture() -> Callable[..., frozenset[str]]:
    return brought
