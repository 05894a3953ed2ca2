"""What a ``result.json`` must be to be shown: it may be damaged, edited, or of another release."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedfree.errors import ConfigError
from fedfree.host.files import read_file
from fedfree.settings import complaint
from simulations.reporting.scores import ORIGINS
from simulations.reporting.words import printable

LARGEST = 10**15
"""Of any number in it; a larger one is none that a run wrote, and overflows where it is drawn."""
TEXT_OF_LINES = "statement"
"""The key whose text has several lines."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Points = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=LARGEST)]
Origin = Literal[*ORIGINS]  # type: ignore[valid-type]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class _Interval(_Part):
    mean: Points
    ci95: Points


class _Measured(_Interval):
    episodes: Count
    transductive: bool


class _Baseline(_Interval):
    gain: Points | None = None
    gain_ci95: Points | None = None


class _Share(_Interval):
    origin: Origin = Field(alias="from")


class _Accuracies(_Part):
    few_shot: Annotated[dict[str, _Measured], Field(min_length=1)]
    baselines: dict[str, dict[str, _Baseline] | None] = {}
    share_closed: dict[str, _Share] | None = None


class _Contribution(_Part):
    state: str


class _Doubted(_Contribution):
    organisation: int | str | None
    id: str | None
    reason: str
    architecture: str | None
    classes: Count | None
    privacy: str | None
    statement: str = ""
    evidence: str = ""
    counts: Points = 1.0


class _OwnAccuracy(_Interval):
    n_way: Count
    n_shot: Count
    episodes: Count


class _Organisation(_Part):
    organisation: int | str
    results: list[_OwnAccuracy]


class _Start(_Part):
    architecture: str
    image_size: Count
    sha256: str
    source: str
    licence: str


class _Judged(_Part):
    broadcast: Literal["learned", "average"]
    learned_on_synthetic_episodes: Points
    average_on_synthetic_episodes: Points


class _NotJudged(_Part):
    broadcast: None = None


class _PublicImages(_Part):
    images: Count
    shown: Count
    sha256: str


class _Recovery(_Part):
    images: Count
    seconds: Seconds


class Shown(_Accuracies):
    """What ``list``, ``show`` and ``compare`` read."""

    domains: dict[str, _Accuracies] = {}
    contributions: Sequence[_Contribution] = ()
    start: _Start | None = None
    further_starts: list[_Start] = []
    public_images: _PublicImages | None = None
    recovery: _Recovery | None = None
    seconds: dict[str, Seconds] = {}
    finished: str = ""
    commit: str | None = None
    versions: dict[str, str] | None = None
    hardware: dict[str, str | int | None] | None = None


class Reported(Shown):
    """What the report reads beside."""

    contributions: Sequence[_Doubted]
    organisations: list[_Organisation] | None = None
    judged: _Judged | _NotJudged = _NotJudged()
    baseline_notes: dict[str, str] = {}
    seconds: dict[str, Seconds]
    dataset: str
    preset: str
    engine: str
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int | None]


def read_result(path: Path, shape: type[Shown] = Shown) -> dict[str, Any]:
    """What a run found, its texts without control characters.

    Raises:
        ConfigError: the file is not what ``shape`` says; the first place where it is not is named.
        StorageError: it cannot be read.
    """
    try:
        result = json.loads(read_file(path))
        shape.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(map(str, first["loc"]))) or "its content"
        raise ConfigError(f"{path} is not the result of a run: {place}: {complaint(first)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not the result of a run: {error}") from error
    return {name: _printable(value, name) for name, value in result.items()}


def _printable(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n"))) if name == TEXT_OF_LINES else printable(value)
    if isinstance(value, Mapping):
        return {printable(key): _printable(each, key) for key, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value
