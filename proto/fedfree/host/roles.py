"""The start of a program: one role of FedFREE, which its extra of the same name installs."""

import gc
import importlib
import sys
from types import ModuleType

_OURS = ("fedfree", "server", "client", "simulations")


def run_role(program: str, extra: str, commands: str) -> None:
    """Run a command line; a package that is not installed, or no home, is one line and exit status 2.

    Only the standard library is imported before, so that whatever is missing is told in the same way.

    Args:
        program: what a person typed.
        extra: of this project, which brings what the program needs.
        commands: module whose ``main`` is the command line.
    """
    try:
        _imported(commands).main()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in _OURS:
            raise
        sys.stderr.write(
            f"error: {program} needs fedfree[{extra}], and its package {package} is not installed: "
            f"pip install 'fedfree[{extra}]'\n"
        )
        sys.exit(2)
    except Exception as error:
        # Raised while its commands are put together, before its own handler: a default may need a home.
        if type(error).__module__ != "fedfree.errors":
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _imported(name: str) -> ModuleType:
    """A module, imported without looking for garbage: imports leave little, and to look takes long."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()
