"""What the three command lines share: a refusal is one line on standard error and an exit status."""

import codecs
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import click
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from fedfree.errors import ConfigError, FederationError, FedFreeError, StorageError, printable
from fedfree.host.files import misplaced, open_stream
from fedfree.release import this_release
from fedfree.settings import refused_path

WRONG_INPUT, FAILED, OWN_FAULT, INTERRUPTED = 2, 1, 70, 130

LONGEST_LINE = 4000
"""Characters of an error; a value that it repeats may be a whole file."""

_PLAIN = {"±": "+-", "×": "x", "·": "*", "—": "-", "…": "...", "ε": "epsilon", "δ": "delta", "λ": "lambda"}
"""What a console shows of characters that it does not have; a question mark of all others."""

Command = TypeVar("Command", bound=Callable[..., Any])


class StoppedError(FedFreeError):
    """Somebody pressed Ctrl-C; the message says what is left behind."""


class _PlainCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left: list[str] = super().parse_args(ctx, args)
        for parameter in self.params:
            given = ctx.params.get(parameter.name or "")
            if isinstance(given, list | tuple):  # of several each is shown, or refused, on its own
                given = "" if "" in given else None
            if parameter.type.name == "path" and (wrong := refused_path(given)):
                raise ConfigError(f"{_name_of(parameter)} {wrong}")
        return left

    def get_help(self, ctx: Any) -> str:
        # typer escapes the bracket of a default for rich also where rich does not draw the help.
        return str(super().get_help(ctx)).replace("\\[", "[")


class _PlainGroup(TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # click would end what does not fit into a line by three dots.
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _name_of(parameter: Any) -> str:
    """As the help has it: ``--out``, or ``RUN`` of what is named by its place."""
    return str(parameter.opts[0] if parameter.param_type_name == "option" else parameter.human_readable_name)


def _name_release(context: typer.Context, asked: bool) -> None:
    if asked:
        typer.echo(f"{context.info_name} {this_release()}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_name_release, help="Name the release installed here."
        ),
    ] = False,
) -> None:
    """What comes before a program's commands."""


class App(typer.Typer):
    """A command line that shows plain help, and leaves exceptions to :func:`run_app`.

    Args:
        is_program: it is a whole one of several commands, and has ``--version``.
    """

    def __init__(self, name: str | None = None, help: str | None = None, *, is_program: bool = False) -> None:
        super().__init__(
            name=name,
            cls=_PlainGroup,
            help=help,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # drawn by rich, help is twice as long
        )
        if is_program:
            self.callback()(_program)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        """As ``typer.Typer.command``."""
        decorate: Callable[[Command], Command] = super().command(name, cls=_PlainCommand, **options)
        return decorate


def print_refusal(error: FedFreeError) -> None:
    """One line on standard error."""
    line = printable(str(error), LONGEST_LINE)
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(line)}")


def run_app(app: typer.Typer) -> None:
    """Run a command line, and end the process with its exit status.

    0; 2 for wrong input, and for files that cannot be read or written; 1 for a federation that failed;
    130 for Ctrl-C; 70 for a fault of our own.
    """
    _open_closed_streams()
    # gRPC would add lines of its own to the one of an error; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if not os.environ.get("COLUMNS", "").strip("0"):  # of no width rich would print nothing
        os.environ.pop("COLUMNS", None)
    if not sys.warnoptions:  # what a library warns its programmer of is a path and a line of code to others
        warnings.simplefilter("ignore")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedfree.plain")
    try:
        _run(app)
    finally:
        _flush()


def _open_closed_streams() -> None:
    """Give what was closed (`>&-`) the null device: the next file that is opened would take its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(open_stream(Path(os.devnull))))


def _run(app: typer.Typer) -> None:
    try:
        sys.exit(app(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        sys.exit(WRONG_INPUT)
    except click.UsageError as mistyped:
        _end(ConfigError(_refused_words(mistyped)), WRONG_INPUT)
    except StoppedError as stopped:
        Console(stderr=True, soft_wrap=True).print(
            printable(str(stopped), LONGEST_LINE), markup=False, highlight=False
        )
        sys.exit(INTERRUPTED)
    except FedFreeError as error:
        _end(error, FAILED if isinstance(error, FederationError) else WRONG_INPUT)
    except (KeyboardInterrupt, SystemExit) as stopped:
        if getattr(stopped, "code", INTERRUPTED) != INTERRUPTED:
            raise
        _end(FedFreeError("interrupted"), INTERRUPTED)
    except OSError as error:
        _end(_of_the_system(error), WRONG_INPUT)
    except MemoryError:
        _end(FedFreeError("this machine has too little memory for what was asked"), FAILED)
    except Exception as error:
        if isinstance(error.__context__, OSError) and error.__context__.errno == errno.ELOOP:
            _end(_of_the_system(error.__context__), WRONG_INPUT)  # before Python 3.13 of another type
        traceback.print_exc()
        words = f"a fault of FedFREE's own ({type(error).__name__}): please report it with the lines above"
        _end(FedFreeError(f"{words}, once you have looked through them for names of yours"), OWN_FAULT)


def _refused_words(mistyped: click.UsageError) -> str:
    """What the command-line library says of what it refuses, as the rest is said, and where to look."""
    words = mistyped.format_message()
    where = f" (see {mistyped.ctx.command_path} --help)" if mistyped.ctx else ""
    return f"{words[:1].lower()}{words[1:].rstrip('.')}{where}"


def _of_the_system(error: OSError) -> StorageError:
    try:
        Path.cwd()
    except OSError:
        return StorageError("the working directory is gone or closed to you: change to another one first")
    said = misplaced(error) or f"{error.filename or 'a file, or the output'}: {error.strerror or error}"
    return StorageError(said)


def _end(error: FedFreeError, status: int) -> NoReturn:
    print_refusal(error)
    sys.exit(status)


def _flush() -> None:
    """Say the last words here: where nobody can read them (`| head`), Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler of an encoding."""
    assert isinstance(error, UnicodeEncodeError)
    wanting = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in wanting), error.end


codecs.register_error("fedfree.plain", _plainly)
