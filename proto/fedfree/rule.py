"""Rules: what is asked of what another party sent, each one function with a name that the sender is told."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fedfree.errors import ContributionError

RULES: dict[str, str] = {}
"""Every rule of the contract: its name, and the first sentence of its docstring."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Check = Callable[_Arguments, _Result]


def rule(name: str) -> Callable[[_Check[_Arguments, _Result]], _Check[_Arguments, _Result]]:
    """Give a rule its name: every ContributionError that it raises carries it to whoever broke the rule."""

    def decorate(check: _Check[_Arguments, _Result]) -> _Check[_Arguments, _Result]:
        RULES[name] = sentence_of(check)

        @functools.wraps(check)
        def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            try:
                return check(*args, **kwargs)
            except ContributionError as error:
                error.rule = error.rule or name
                raise

        return checked

    return decorate


def sentence_of(check: Callable[..., object]) -> str:
    """The first paragraph of a rule's docstring, on one line."""
    return " ".join((check.__doc__ or "").partition("\n\n")[0].split())
