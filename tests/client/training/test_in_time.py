"""Training for a federation that takes too long, or may not spend: nothing half-made, nothing twice."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import pytest

from client.config import ClientConfig, DataConfig, PrivacyConfig, TrainingConfig
from client.limits import LimitsConfig
from client.training import pretrain as pretraining
from client.training.ledger import RESERVED, SPENT, Ledger
from client.training.observer import ignore, until
from client.training.pretrain import pretrain
from fedfree.architectures import Architecture
from fedfree.errors import OutOfTimeError, TooMuchError
from fedfree.statement import DpSgd

STEPS = 4


@pytest.fixture
def config(
    tmp_path: Path, write_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> ClientConfig:
    """An organisation with ten seconds for a federation, whose private training takes few steps."""
    monkeypatch.setattr(pretraining, "plan", lambda *_, **__: DpSgd(10.0, 1.0, STEPS))
    return ClientConfig(
        data=DataConfig(source=write_images(tmp_path / "images", {"a": 6, "b": 6})),
        training=TrainingConfig(image_size=16, epochs=1, min_steps=STEPS, batch_size=4, threads=1),
        cache=tmp_path / "cache",
        ledger=tmp_path / "ledger.sqlite",
        limits=LimitsConfig(seconds=10),
    )


def privately(config: ClientConfig) -> ClientConfig:
    training = TrainingConfig(image_size=16, epochs=1, architecture=Architecture(norm="group"), threads=1)
    return config.model_copy(
        update={"training": training, "privacy": PrivacyConfig(epsilon=8, delta=1e-3, batch_size=12)}
    )


def with_limits(config: ClientConfig, **limits: object) -> ClientConfig:
    return config.model_copy(update={"limits": LimitsConfig.checked(limits)})


def let_pass(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let a clock show these, one each time it is looked at, and then the last of them."""
    shown: Iterator[float] = chain(seconds, repeat(seconds[-1]))
    monkeypatch.setattr(pretraining, "until", partial(until, clock=lambda: next(shown)))


def states(config: ClientConfig) -> list[str]:
    return [entry.state for entry in Ledger(config.ledger_path).entries()]


def test_work_that_takes_as_long_as_it_may_goes_on_and_is_ended_after_that() -> None:
    now = [5.0]
    observe = until(10, ignore, clock=lambda: now[0])
    now[0] = 15.0
    observe("train", 3, 4)
    now[0] = 15.1
    with pytest.raises(OutOfTimeError, match=r"than the 10 s of limits\.seconds, .* \(train: 3 of 4\)"):
        observe("train", 3, 4)
    assert until(None, ignore) is ignore


def test_training_that_takes_too_long_leaves_no_contribution_and_no_row(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_pass(monkeypatch, 0, 0, 0, 11)
    with pytest.raises(OutOfTimeError, match=rf"train: 2 of {STEPS}"):
        pretrain(config)
    assert (states(config), list(config.cache.iterdir())) == ([], [])
    let_pass(monkeypatch, 0)
    assert pretrain(config)
    assert states(config) == [SPENT]


def test_private_training_that_takes_too_long_keeps_its_one_row_however_often_it_is_asked_for(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = privately(config)
    let_pass(monkeypatch, 0, 0, 0, 11)
    with pytest.raises(OutOfTimeError, match=rf"train: 2 of {STEPS}"):
        pretrain(private)
    assert states(private) == [RESERVED]
    let_pass(monkeypatch, 0)
    for fewer in (10, 9):
        with pytest.raises(OutOfTimeError, match=r"ended after 10 s before.* raise limits\.seconds"):
            pretrain(with_limits(private, seconds=fewer))
    assert states(private) == [RESERVED]
    assert not any(path.is_dir() for path in private.cache.iterdir()), "no model is kept"
    assert pretrain(with_limits(private, seconds=11))
    assert states(private) == [RESERVED, SPENT]


def test_private_training_whose_time_is_up_before_its_first_step_reserves_nothing(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_pass(monkeypatch, 0, 11)
    with pytest.raises(OutOfTimeError, match=r"\(plan: 1 of 1\)"):
        pretrain(privately(config))
    assert states(config) == []
    let_pass(monkeypatch, 0)
    assert pretrain(privately(config)), "nothing was spent, so it may be tried again"


@pytest.mark.parametrize("private", [False, True], ids=["plain", "DP-SGD"])
def test_where_no_budget_may_be_spent_only_what_the_ledger_holds_is_sent(
    config: ClientConfig, private: bool
) -> None:
    spending = with_limits(privately(config) if private else config)
    sparing = with_limits(spending, spend_epsilon=False)
    with pytest.raises(TooMuchError, match=r"limits\.spend_epsilon is false"):
        pretrain(sparing)
    assert states(config) == []
    sent = pretrain(spending)
    assert pretrain(sparing) == sent
    config.ledger_path.unlink()
    with pytest.raises(TooMuchError, match=r"limits\.spend_epsilon"):
        pretrain(sparing)


def test_images_larger_than_the_limit_are_refused_before_any_is_read(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "load_configured", lambda *_, **__: pytest.fail("read"))
    larger = config.model_copy(update={"training": config.training.model_copy(update={"image_size": 17})})
    with pytest.raises(TooMuchError, match="asks for 17 pixels a side, and 16 is the most"):
        pretrain(with_limits(larger, image_size=16))
