"""What a person sees of a command line: whatever happens, one line and an exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedfree.errors import ConfigError
from fedfree.host.cli import App, _run, print_refusal

PROGRAM = r"""
import sys
from typing import Annotated
import typer
from rich.console import Console
from rich.table import Table
from fedfree.errors import ConfigError
from fedfree.host.cli import App, run_app

app = App("program", "A program that prints 48.1 \u00b1 0.4.")

@app.command()
def show() -> None:
    "Print \u03b5, \u00b1 and a box."
    table = Table("\u03b5", "accuracy")
    table.add_row("8", "48.1 \u00b1 0.4 \u2713")
    Console().print(table)

@app.command()
def refuse() -> None:
    "Refuse \u03b5."
    raise ConfigError("\u03b5 = 0 is too small")

@app.command()
def much() -> None:
    "Print without end."
    while True:
        print("x" * 1000)

@app.command()
def interrupted() -> None:
    "Be interrupted."
    raise KeyboardInterrupt

@app.command()
def stopped() -> None:
    "Be stopped in good order."
    raise SystemExit(130)

@app.command()
def full() -> None:
    "Meet a full disk."
    with open("/dev/full", "w") as file:
        file.write("x")

@app.command()
def missing() -> None:
    "Meet a file that is not there."
    open("/nowhere/file")

@app.command()
def looping() -> None:
    "Meet a link to itself."
    import os, pathlib, tempfile
    os.chdir(tempfile.mkdtemp())
    os.symlink("loop", "loop")
    pathlib.Path("loop").resolve().stat()

@app.command()
def large() -> None:
    "Read more than memory holds."
    raise MemoryError

@app.command()
def count(size: Annotated[int, typer.Option(min=4)]) -> None:
    "Count from 4."

@app.command()
def warned() -> None:
    "Use a library that warns."
    import warnings
    warnings.warn("Corrupt EXIF data")

@app.command()
def broken() -> None:
    "Have a fault."
    {}["key"]

run_app(app)
"""
ASCII = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_a_console_that_has_no_such_characters_shows_something_for_them() -> None:
    done = run("show", **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert "48.1 +- 0.4 ?" in done.stdout
    assert "epsilon" in done.stdout
    refused = run("refuse", **ASCII)
    assert (refused.returncode, refused.stderr) == (2, "error: epsilon = 0 is too small\n")
    assert run("--help", **ASCII).returncode == 0


def test_a_console_that_has_them_shows_them() -> None:
    assert "48.1 ± 0.4 ✓" in run("show", PYTHONIOENCODING="utf-8").stdout


@pytest.mark.parametrize(
    ("command", "status", "line"),
    [
        ("interrupted", 130, "error: interrupted"),
        ("stopped", 130, "error: interrupted"),
        ("full", 2, "error: a file, or the output: No space left on device"),
        ("missing", 2, "error: /nowhere/file: No such file or directory"),
        ("large", 1, "error: this machine has too little memory for what was asked"),
    ],
)
def test_whatever_stops_a_command_is_one_line(command: str, status: int, line: str) -> None:
    done = run(command)
    assert (done.returncode, done.stderr) == (status, f"{line}\n")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("shwo", "no such command 'shwo'. Did you mean 'show'? (see -c --help)"),
        ("show --wide", "no such option: --wide (see -c show --help)"),
        ("show twice", "got unexpected extra argument (twice) (see -c show --help)"),
        ("count", "missing option '--size' (see -c count --help)"),
        ("count --size", "option '--size' requires an argument"),
        ("count --size 3", "invalid value for '--size': 3 is not in the range x>=4 (see -c count --help)"),
    ],
)
def test_what_is_mistyped_is_one_line_too(command: str, line: str) -> None:
    done = run(*command.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_without_a_command_the_commands_are_named() -> None:
    done = run()
    assert done.returncode == 2 and "Usage:" in done.stderr and "show" in done.stderr


def test_what_a_library_warns_its_programmer_of_is_not_shown() -> None:
    assert (run("warned").returncode, run("warned").stderr) == (0, "")
    assert "Corrupt EXIF data" in run("warned", PYTHONWARNINGS="default").stderr


def test_a_link_to_itself_is_named() -> None:
    done = run("looping")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("/loop: Too many levels of symbolic links\n")


def test_a_fault_of_our_own_says_so_below_what_is_needed_to_find_it() -> None:
    done = run("broken")
    assert done.returncode == 70
    assert "KeyError: 'key'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: a fault of FedFREE's own (KeyError): please report"
    )


@pytest.mark.parametrize("command", ["much", "show"])
def test_a_reader_that_goes_away_is_no_error(command: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    with process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("command", "status"), [("show", 0), ("refuse", 2)])
def test_streams_that_are_closed_change_nothing(command: str, status: int) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, PROGRAM, command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.returncode == status


@pytest.mark.parametrize("columns", ["", "0"])
def test_a_width_that_is_none_hides_nothing(columns: str) -> None:
    done = run("show", COLUMNS=columns)
    assert done.returncode == 0 and "48.1" in done.stdout


def test_a_refusal_is_one_short_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_refusal(ConfigError("no such key \x1b[2Jevil\n[/x]: " + "y" * 100_000))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no such key \N{REPLACEMENT CHARACTER}[2Jevil [/x]: y")
    assert len(line) < 5000


def test_a_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App("program", "A program.")

    @app.command()
    def where() -> None:
        Path.cwd()

    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit, match="2"):
        _run(app)
    assert capsys.readouterr().err == (
        "error: the working directory is gone or closed to you: change to another one first\n"
    )


NO_PATH = " names no file or folder: say which (the working directory is .)\n"


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--folder", ""], f"error: --folder{NO_PATH}"),
        (["file", ""], f"error: FILES{NO_PATH}"),
        (
            ["--folder", "\x1b]0;x\x07"],
            r"error: --folder names '\x1b]0;x\x07', which has a control character",
        ),
        (["--folder", "a\nb"], r"error: --folder names 'a\nb', which has a control character in it"),
    ],
)
def test_a_path_that_is_a_mistake_is_neither_used_nor_obeyed_by_the_terminal_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], refusal: str
) -> None:
    app = App("program", "A program.")

    @app.command()
    def use(files: list[Path] = typer.Argument(default=[]), folder: Path = Path("folder")) -> None:
        pytest.fail("used")

    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit, match="2"):
        _run(app)
    assert capsys.readouterr().err.startswith(refusal)
