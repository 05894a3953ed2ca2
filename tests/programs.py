"""A program's command line, run in this process as its console script would."""

import importlib
import sys
from collections.abc import Callable

import pytest

PROGRAMS = ("client", "server", "simulations")
NAMES = {"simulations": "sim"}
"""What a program is called after ``fedfree-``, where that is not its room."""
RunProgram = Callable[..., tuple[int, str, str]]
"""The fixture ``run_program``: :func:`run_here` from the program on."""


def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], program: str, *words: object
) -> tuple[int, str, str]:
    """Exit status, and what was printed to standard output and to standard error, never a traceback."""
    name = NAMES.get(program, program)
    monkeypatch.setattr(sys, "argv", [f"fedfree-{name}", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"{program}.commands.main").main()
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return int(ended.value.code or 0), printed.out, printed.err
