"""Which code made something: a version number stays the same while code changes, a hash does not."""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def code_sha256(*modules: str) -> str:
    """Hexadecimal hash of the installed source of modules, and of all inside those that are packages."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        for name, path in _sources(module):
            content = path.read_bytes()
            digest.update(f"{module} {name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"no source of {module}", name=module)
    if not found.submodule_search_locations:
        yield module, Path(found.origin)
    for folder in map(Path, found.submodule_search_locations or ()):
        yield from ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*.py")))
