"""docs/configuration.md: every option there is, out of the settings classes that declare them."""

import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from client.config import ClientConfig
from client.doors.flower_node import NodeConfig
from fedfree.host.files import write_file
from fedfree.host.starts import StartConfig
from fedfree.settings import REQUIRED, Leaf, Settings, leaves
from server.config import PRESETS, ServerConfig
from server.doors.deployment import DeploymentConfig
from server.doors.limits import ServiceConfig
from simulations.attacks.config import AuditConfig
from simulations.config import SimulationConfig

PAGE = Path("docs/configuration.md")
PAGES: tuple[tuple[str, type[Settings], tuple[str, ...]], ...] = (
    ("An organisation: `client.toml`, `fedfree-client pretrain`, `rehearse`", ClientConfig, ()),
    ("A coordinator: `server.toml`, `fedfree-server learn`", ServerConfig, ()),
    ("A start: `fedfree-server start make`", StartConfig, ()),
    (
        "A simulation: `fedfree-sim run`, `prepare`, `config`, `bench`, `privacy sweep`",
        SimulationConfig,
        ("training", "privacy", "server"),
    ),
    ("An audit: `fedfree-sim privacy audit`", AuditConfig, ("training", "privacy")),
    ("The gRPC door: `fedfree-server serve`", ServiceConfig, ()),
    ("A coordinator's SuperLink: `deployment.toml`", DeploymentConfig, ()),
    ("An organisation's node: `node.toml`", NodeConfig, ()),
)
"""Heading, class, and the tables in it that another page holds."""

HEAD = """# Configuration

Written by `fedfree-sim results write` from the settings classes, not by hand. Every option can stand in a
TOML file (`--config FILE`, a dot for each table) or on the command line as `--set KEY=VALUE`; those that
are used often have flags of their own, which `--help` shows. Flags win over `--set`, that over the file,
that over a preset, that over the defaults here. `fedfree-sim config` prints what comes out, with where each
value came from. Relative paths in a file are relative to that file.
"""


def configuration_page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(*each) for each in PAGES), _presets()])


def write_page(root: Path) -> Path:
    """Write it into a clone."""
    write_file(root / PAGE, configuration_page().encode())
    return root / PAGE


def _section(heading: str, settings: type[Settings], elsewhere: tuple[str, ...]) -> str:
    rows = [
        _row(leaf)
        for leaf in leaves(settings)
        if leaf.path.partition(".")[0] not in elsewhere or "." not in leaf.path
    ]
    more = (
        f"\nThe tables {', '.join(f'`[{name}]`' for name in elsewhere)} are those above.\n"
        if elsewhere
        else ""
    )
    return "\n".join([f"## {heading}\n", "| key | default | |", "| --- | --- | --- |", *rows, more])


def _row(leaf: Leaf) -> str:
    text = " ".join(leaf.description.split()).replace("``", "`").replace("|", "\\|")
    bounds = " ".join(_bounds(leaf))
    return f"| `{leaf.path}` | {_default(leaf.default)} | {text}{f' ({bounds})' if bounds else ''} |"


def _default(value: object) -> str:
    if value is REQUIRED:
        return "*needed*"
    if value is None or value == () or isinstance(value, Path):  # a person's own folder: the text names it
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _bounds(leaf: Leaf) -> Iterator[str]:
    """What a value may be, in words."""
    for bound in _metadata(leaf.annotation):
        for name, words in BOUNDS.items():
            if hasattr(bound, name):
                yield f"{words} {getattr(bound, name)}"


def _metadata(annotation: object) -> Iterator[object]:
    """What ``Annotated`` adds to a type, also within unions and tuples."""
    for argument in typing.get_args(annotation):
        yield from argument.metadata if isinstance(argument, FieldInfo) else (argument,)
        yield from _metadata(argument)


def _presets() -> str:
    names = [name for name in PRESETS if name != "default"]
    paths = [leaf.path for leaf in leaves(ServerConfig) if leaf.path != "preset"]
    made = {name: ServerConfig.checked({"preset": name}).plain() for name in PRESETS}
    rows = []
    for path in paths:
        cells = [_at(made[name], path) for name in PRESETS]
        if len(set(map(str, cells))) > 1:
            rows.append(f"| `{path}` | {' | '.join(f'`{cell}`' for cell in cells)} |")
    head = f"| key | default | {' | '.join(names)} |"
    return "\n".join(["## Presets of the server\n", head, f"| --- |{' --- |' * len(PRESETS)}", *rows, ""])


def _at(values: object, path: str) -> object:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return str(values).lower() if isinstance(values, bool) else values
