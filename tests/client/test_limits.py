"""Limits of what a coordinator may ask: the most passes, one more is refused with the setting's name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.limits import (
    LimitsConfig,
    check_meta_learner,
    check_spending,
    check_start,
    check_training,
    read_limits,
)
from fedfree.adaptation import Recipe
from fedfree.architectures import InputSpec
from fedfree.codec import MetaLearner
from fedfree.errors import ConfigError, TooMuchError
from fedfree.grpc_status import status_of
from fedfree.start import LoadedStart

SMALL = LimitsConfig(image_size=32, recipe_steps=5)


@pytest.mark.parametrize(("height", "width"), [(33, 16), (16, 33)], ids=["too high", "too wide"])
def test_a_start_as_large_as_the_limit_passes_and_one_pixel_more_is_refused(
    make_start: Callable[..., LoadedStart], height: int, width: int
) -> None:
    start = make_start().start
    check_start(replace(start, input=InputSpec(1, 32, 32)), SMALL)
    with pytest.raises(TooMuchError, match=r"the start asks for 33 pixels.* 32 is .* limits\.image_size"):
        check_start(replace(start, input=InputSpec(1, height, width)), SMALL)


def test_a_meta_learner_as_large_as_the_limit_passes_and_one_pixel_more_is_refused(
    make_meta_learner: Callable[..., MetaLearner],
) -> None:
    sent = make_meta_learner()
    check_meta_learner(replace(sent, input=InputSpec(3, 32, 32)), SMALL)
    with pytest.raises(TooMuchError, match=r"meta-learner asks for 33 pixels.* 32 is .* limits\.image_size"):
        check_meta_learner(replace(sent, input=InputSpec(3, 33, 33)), SMALL)


def test_a_recipe_of_as_many_steps_as_the_limit_passes_and_one_step_more_is_refused(
    make_meta_learner: Callable[..., MetaLearner],
) -> None:
    check_meta_learner(make_meta_learner(Recipe("gradient", steps=5)), SMALL)
    with pytest.raises(TooMuchError, match=r"recipe asks for 6 steps, and 5 is .* limits\.recipe_steps"):
        check_meta_learner(make_meta_learner(Recipe("gradient", steps=6)), SMALL)


def test_training_on_images_as_large_as_the_limit_passes_and_one_pixel_more_is_refused() -> None:
    check_training(32, SMALL)
    with pytest.raises(TooMuchError, match=r"asks for 33 pixels a side, and 32 is .* limits\.image_size"):
        check_training(33, SMALL)


def test_budget_is_spent_unless_the_organisation_forbids_it() -> None:
    check_spending(LimitsConfig())
    with pytest.raises(TooMuchError, match=r"limits\.spend_epsilon is false"):
        check_spending(LimitsConfig(spend_epsilon=False))


def test_by_default_all_passes_that_the_contract_allows(
    make_meta_learner: Callable[..., MetaLearner], make_start: Callable[..., LoadedStart]
) -> None:
    largest = InputSpec(1, 512, 512)
    check_start(replace(make_start().start, input=largest), LimitsConfig())
    sent = make_meta_learner(Recipe("gradient", steps=1000), channels=1)
    check_meta_learner(replace(sent, input=largest), LimitsConfig())


def test_the_limits_are_said_in_one_line() -> None:
    assert LimitsConfig(image_size=64, recipe_steps=7, seconds=90, spend_epsilon=False).words() == (
        "a coordinator may ask for images of at most 64 pixels a side, for recipes of at most 7 steps, and "
        "for 90 seconds of training, which may not spend privacy budget"
    )
    assert "any number of seconds of training, which may spend" in LimitsConfig().words()


def test_limits_are_read_from_the_table_of_an_organisations_file_or_of_one_that_holds_only_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "client.toml"
    for others in ("", 'seed = 3\n[data]\nsource = "images"\n'):
        path.write_text(f"{others}[limits]\nrecipe_steps = 5\nimage_size = 32\n")
        assert read_limits(path) == SMALL
    assert read_limits(None) == LimitsConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limit]\nseconds = 1", r"client\.toml has no table \[limits\]"),
        ("[limits]\nsecond = 1", r"client\.toml: limits: second: .*did you mean seconds"),
        ("[limits]\nseconds = 0", "limits: seconds: .*greater than 0"),
        ("[limits]\nseconds = inf", "limits: seconds: .*finite"),
        ("limits = 3", "client.toml: limits"),
    ],
)
def test_a_file_that_sets_no_limits_or_wrong_ones_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "client.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_limits(path)


def test_the_refusal_is_one_of_those_that_the_other_side_may_be_told() -> None:
    assert status_of(TooMuchError("")).name == "INVALID_ARGUMENT"
