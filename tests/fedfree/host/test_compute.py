"""How many threads are computed with, whatever was asked for."""

import pytest

from fedfree.errors import ConfigError
from fedfree.host.compute import MOST_THREADS, ComputeConfig, count_threads


@pytest.mark.parametrize(
    ("asked", "taken"), [("3", 3), ("4,2", 4), ("1000000", MOST_THREADS), ("9" * 5000, MOST_THREADS)]
)
def test_the_environment_says_how_many_threads_up_to_what_a_system_makes(
    monkeypatch: pytest.MonkeyPatch, asked: str, taken: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert count_threads(None) == taken


@pytest.mark.parametrize("asked", ["", "0", "-2", "many"])
def test_what_names_no_number_of_threads_is_passed_over(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usable = count_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert count_threads(None) == usable


def test_more_threads_than_a_system_makes_are_refused() -> None:
    with pytest.raises(ConfigError, match="less than or equal to 1024"):
        ComputeConfig.parse({"threads": MOST_THREADS + 1}, origin="test")
