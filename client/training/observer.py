"""The one hook on which everything hangs that shows how far long work is."""

import time
from collections.abc import Callable

from fedfree.errors import OutOfTimeError

Observer = Callable[[str, int, int], None]
"""Told what is being done, how many of it are done, and of how many."""


def ignore(what: str, done: int, of: int) -> None:
    """The observer that observes nothing."""


def until(
    seconds: float | None, observe: Observer, *, clock: Callable[[], float] = time.monotonic
) -> Observer:
    """An observer that hands on what it is told, and ends the work once so many seconds have passed.

    Args:
        seconds: from now on; None for no end.
        clock: tells seconds.

    Returns:
        What raises OutOfTimeError.
    """
    if seconds is None:
        return observe
    end = clock() + seconds

    def observe_in_time(what: str, done: int, of: int) -> None:
        if clock() > end:
            raise OutOfTimeError(
                f"training took longer than the {seconds:g} s of limits.seconds, and was ended "
                f"({what}: {done} of {of}): raise limits.seconds, or train less"
            )
        observe(what, done, of)

    return observe_in_time
