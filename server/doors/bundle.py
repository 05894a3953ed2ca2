"""The Flower app that a SuperLink is given: this installation's own sources, of a checkout or a wheel."""

import importlib.util
import shutil
from pathlib import Path

import fedfree
from fedfree.errors import FederationError
from fedfree.host.files import named, write_file

PACKAGES = ("client", "server")
_TEMPLATE = Path(__file__).with_name("flower_app.toml")


def write_bundle(folder: Path) -> Path:
    """Put the app together in ``folder``, in place of what is there, and return it.

    Raises:
        FederationError: one side of FedFREE is not installed here.
        StorageError: the folder cannot be written.
    """
    with named(f"cannot write {folder}"):
        shutil.rmtree(folder, ignore_errors=True)
        for package in PACKAGES:
            source = _source(package)
            for path in sorted(source.rglob("*.py")):
                target = folder / package / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)  # of what is made anew at every start, nothing need be synced
    write_file(folder / "pyproject.toml", app_toml().encode())
    return folder


def app_toml() -> str:
    """The app's pyproject.toml."""
    return _TEMPLATE.read_text(encoding="utf-8").replace("{version}", fedfree.__version__)


def _source(package: str) -> Path:
    """Where a package lies, found without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FederationError(f"Flower's app needs {package}/, which is not installed: install fedfree whole")
    return Path(found.origin).parent
