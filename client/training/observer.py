"""The one hook on which everything hangs that shows how far long work is."""

from collections.abc import Callable

Observer = Callable[[str, int, int], None]
"""Told what is being done, how many of it are done, and of how many."""


def ignore(what: str, done: int, of: int) -> None:
    """The observer that observes nothing."""
