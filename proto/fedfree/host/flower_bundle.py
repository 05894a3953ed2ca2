"""The Flower app that a SuperLink is given: this installation's own sources, of a checkout or a wheel.

Both sides make it alike, so that an organisation can tell whether a coordinator's is that of its own release.
"""

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

import fedfree
from fedfree.errors import FederationError
from fedfree.host.files import named, read_file

PACKAGES = ("client", "server")
_TEMPLATE = Path(__file__).with_name("flower_app.toml")


def bundle_files() -> Mapping[str, bytes]:
    """What the app is made of, by its path in there; raises FederationError where a side is not installed."""
    files = {}
    for package in PACKAGES:
        source = _source(package)
        for path in sorted(source.rglob("*.py")):
            files[f"{package}/{path.relative_to(source).as_posix()}"] = read_file(path)
    return files | {"pyproject.toml": app_toml().encode()}


def write_bundle(folder: Path) -> Path:
    """Put the app together in ``folder``, in place of what is there, and return it.

    Raises:
        FederationError: one side of FedFREE is not installed here.
        StorageError: the folder cannot be written.
    """
    files = bundle_files()
    with named(f"cannot write {folder}"):
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)  # of what is made anew at every start, nothing need be synced
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
