"""A ``result.json`` that was damaged, edited or is another release's: refused with the place, or shown."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedfree.errors import ConfigError
from simulations.reporting.comparing import _circumstances
from simulations.reporting.scores import comparison
from simulations.reporting.shape import Reported, Shown, read_result
from simulations.reporting.summary import printed

SCORE = {"mean": 48.2, "ci95": 0.8}
RESULT: dict[str, Any] = {
    "few_shot": {"5way1shot": {**SCORE, "episodes": 600, "transductive": False}},
    "baselines": {"random_init": {"5way1shot": {**SCORE, "gain": 16.6, "gain_ci95": 0.9}}},
    "share_closed": {"5way1shot": {"from": "public_start", **SCORE}},
    "contributions": [{"state": "accepted"}],
    "start": {"architecture": "a", "image_size": 64, "sha256": "ab", "source": "b", "licence": "c"},
    "public_images": {"images": 4, "shown": 2, "sha256": "ab"},
    "recovery": {"images": 10, "seconds": 1.5},
    "seconds": {"learn": 2.0},
    "versions": {"torch": "2"},
    "hardware": {"cpu": "a CPU", "gpu": None, "threads": 1},
}
WRONG = (
    *(None, "\x1b[31mX\n[/x]", float("nan"), float("inf"), 10**400, True, -3.5),
    *([], {}, ["a"], {"a": {"b": None}}),
)


def places(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield from places(each, (*above, name))


def changed(place: tuple[str | int, ...], wrong: object) -> Any:
    whole: Any = {"": copy.deepcopy(RESULT)}
    *above, last = ("", *place)
    owner = whole
    for name in above:
        owner = owner[name]
    owner[last] = wrong
    return whole[""]


def written(folder: Path, result: object) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(result))
    return path


@pytest.mark.parametrize(
    "place", list(places(RESULT)), ids=lambda place: ".".join(map(str, place)) or "whole"
)
def test_a_wrong_value_anywhere_is_refused_in_one_line_or_shown(
    place: tuple[str, ...], tmp_path: Path
) -> None:
    for wrong in WRONG:
        try:
            result = read_result(written(tmp_path, changed(place, wrong)))
        except ConfigError as error:
            assert str(error).isprintable()
            continue
        assert "\x1b" not in printed(result)
        assert comparison(result)
        _circumstances(result)


@pytest.mark.parametrize("place", [place for place in places(RESULT) if place])
def test_a_missing_value_is_refused_or_not_needed(place: tuple[str | int, ...], tmp_path: Path) -> None:
    result = copy.deepcopy(RESULT)
    owner: Any = result
    for name in place[:-1]:
        owner = owner[name]
    del owner[place[-1]]
    try:
        assert printed(read_result(written(tmp_path, result)))
    except ConfigError as error:
        assert "it is missing" in str(error) or "at least 1 item" in str(error)


def test_what_a_run_wrote_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_result(written(tmp_path, RESULT)) == RESULT


def test_the_report_needs_more_than_the_table(tmp_path: Path) -> None:
    path = written(tmp_path, RESULT)
    assert read_result(path, Shown)
    with pytest.raises(ConfigError, match=r"result\.json is not the result of a run: contributions\.0\."):
        read_result(path, Reported)


def test_a_result_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not the result of a run"):
        read_result(path)
