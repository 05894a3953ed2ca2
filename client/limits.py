"""What a coordinator may ask of this machine: limits that the organisation sets, and what they refuse.

Both doors ask the same functions, of a manifest, before any weights are fetched, kept or built from.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedfree.architectures import InputSpec
from fedfree.codec import MetaLearner
from fedfree.errors import ConfigError, TooMuchError
from fedfree.settings import Settings, read_toml
from fedfree.start import Start


class LimitsConfig(Settings):
    """The most that a coordinator may ask of this machine; what asks for more is refused and named."""

    image_size: Annotated[int, Field(ge=16, le=512)] = 512
    """Largest height or width, in pixels, of the images that a start or a meta-learner takes."""
    recipe_steps: Annotated[int, Field(ge=0, le=1000)] = 1000
    """Most gradient steps that a meta-learner's recipe may take on this machine to adapt."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Most seconds that training for a federation may take; no limit by default.

    What is not done by then is thrown away. Under differential privacy its row of the ledger stays, as where
    a person stops it, and nothing is spent on another attempt until this is raised.
    """
    spend_epsilon: bool = True
    """Whether training for a federation may spend privacy budget; if not, only models that the ledger holds
    are sent.

    That refuses training without differential privacy too, since what it spends no epsilon covers.
    """

    def words(self) -> str:
        """All of them, in one line."""
        seconds = "any number of" if self.seconds is None else f"{self.seconds:g}"
        spending = "may" if self.spend_epsilon else "may not"
        return (
            f"a coordinator may ask for images of at most {self.image_size} pixels a side, for recipes of at "
            f"most {self.recipe_steps} steps, and for {seconds} seconds of training, which {spending} spend "
            "privacy budget"
        )


def read_limits(path: Path | None) -> LimitsConfig:
    """The table ``[limits]`` of a TOML file, such as an organisation's; without a file the defaults.

    Raises:
        ConfigError: there is no such file or table, or a value in it is refused.
    """
    if path is None:
        return LimitsConfig()
    values = read_toml(LimitsConfig, path)
    if "limits" not in values:
        raise ConfigError(f"{path} has no table [limits]: add it, or name another file")
    return LimitsConfig.parse(values["limits"], origin=f"{path}: limits")


def check_start(start: Start, limits: LimitsConfig) -> None:
    """Refuse a start by its manifest; raises TooMuchError."""
    _check_input("the start", start.input, limits)


def check_meta_learner(meta_learner: MetaLearner, limits: LimitsConfig) -> None:
    """Refuse a meta-learner by its manifest, which holds its recipe; raises TooMuchError."""
    _check_input("the meta-learner", meta_learner.input, limits)
    _check(
        "the meta-learner's recipe", meta_learner.recipe.steps, "steps", limits.recipe_steps, "recipe_steps"
    )


def check_training(image_size: int, limits: LimitsConfig) -> None:
    """Refuse to train on images of so many pixels a side; raises TooMuchError."""
    _check("training", image_size, "pixels a side", limits.image_size, "image_size")


def check_spending(limits: LimitsConfig) -> None:
    """Refuse to contribute a model that the ledger does not hold; raises TooMuchError."""
    if not limits.spend_epsilon:
        raise TooMuchError(
            "a model is asked for that the ledger does not hold, which would spend privacy budget, and "
            "limits.spend_epsilon is false: only models trained before are sent; to train one, set "
            "limits.spend_epsilon to true"
        )


def _check_input(what: str, input: InputSpec, limits: LimitsConfig) -> None:
    side = max(input.height, input.width)
    _check(what, side, "pixels a side", limits.image_size, "image_size")


def _check(what: str, asked: int, unit: str, limit: int, setting: str) -> None:
    if asked > limit:
        raise TooMuchError(
            f"{what} asks for {asked} {unit}, and {limit} is the most here: ask the coordinator for less, or "
            f"raise limits.{setting}"
        )
