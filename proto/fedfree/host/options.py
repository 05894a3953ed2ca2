"""Command-line options out of settings classes: a few as flags, all the others as ``--set KEY=VALUE``.

Nothing is declared here. A command says which settings class it takes, and which of its options people use so
often that they are worth a flag; type, default, range and help come from the class.
"""

import functools
import inspect
import shlex
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Concatenate, Generic, ParamSpec, TypeVar

import tomli_w
import typer

from fedfree.errors import ConfigError, FedFreeError
from fedfree.settings import (
    REQUIRED,
    InvalidError,
    Layer,
    Leaf,
    Settings,
    Values,
    leaves,
    merge,
    nested,
    no_such_setting,
    parse_toml,
    read_toml,
    value_at,
    without,
)

Chosen_ = TypeVar("Chosen_", bound=Settings)
_Parameters = ParamSpec("_Parameters")
Flags = Mapping[str, str | tuple[str, ...]]
"""From a flag's name, as a Python identifier, to the option that it sets, or to several."""

DEFAULT = "default"


@dataclass(frozen=True)
class Chosen(Generic[Chosen_]):
    """Settings, and where each value came from."""

    settings: Chosen_
    origins: Mapping[str, str]
    """Path to ``default``, ``preset large``, the name of a file, or the option of the command line."""
    given: frozenset[str]
    """Paths that a person set, on the command line or in a file."""
    file: Path | None = None
    """The one that ``--config`` named."""

    def over(self, under: Layer) -> "Chosen[Chosen_]":
        """What the values that a person gave come to over ``under`` instead of the defaults."""
        plain = self.settings.plain()
        given: Values = {}
        for path in self.given:
            given = merge(given, nested(path, value_at(plain, path)))
        settings = type(self.settings).parse(merge(under.values, given), origin=under.origin)
        return replace(self, settings=settings)

    def to_toml(self) -> str:
        """Every value with where it came from, as TOML."""
        lines = []
        for line, path in _toml_lines(self.settings.plain(), ()):
            origin = self.origins.get(path, "")
            lines.append(f"{line}  # {origin}" if origin else line)
        return "\n".join(lines) + "\n"


def configured(
    settings: type[Chosen_],
    flags: Flags,
    *,
    arguments: Flags = MappingProxyType({}),
    under: Layer | None = None,
) -> Callable[[Callable[Concatenate[Chosen[Chosen_], _Parameters], Any]], Callable[..., Any]]:
    """Give a command the options of a settings class, and hand it what they come to as its first argument.

    Later wins: ``under``, the file named by ``--config``, ``--set``, flags.

    Args:
        arguments: as ``flags``, of what is named by its place instead.
        under: values that this command begins from instead of the defaults.
    """
    named = {**arguments, **flags}

    def decorate(command: Callable[Concatenate[Chosen[Chosen_], _Parameters], Any]) -> Callable[..., Any]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def with_options(**given: Any) -> Any:
            flagged = {name: given.pop(name) for name in named}
            file, assignments = given.pop("config_file"), given.pop("assignments")
            layers = [under] if under else []
            layers += [_file_layer(settings, file)] if file else []
            layers += _assigned(settings, assignments or [])
            layers += _flagged(settings, named, flagged, places=arguments)
            chosen = replace(choose(settings, layers, begun=1 if under else 0), file=file)
            return command(chosen, **given)  # type: ignore[call-arg]

        parameters = [*own, *_parameters(settings, named, under, places=arguments)]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_options

    return decorate


def choose(settings: type[Chosen_], layers: Sequence[Layer], *, begun: int = 0) -> Chosen[Chosen_]:
    """What layers come to, one over the other.

    Args:
        begun: how many of the layers are what a command begins from, not what a person gave.

    Raises:
        ConfigError: an unknown key, or a value that is refused, by the name of its layer.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, layer.values)
    paths = [leaf.path for leaf in leaves(settings)]
    origins = {path: _origin(settings, values, layers, path) for path in paths}
    try:
        made = settings.checked(values)
    except InvalidError as error:
        raise ConfigError(_refusal(error, layers)) from error
    except FedFreeError as error:
        raise ConfigError(str(error)) from error
    given = {
        path for path in paths if any(value_at(each.values, path) is not None for each in layers[begun:])
    }
    return Chosen(made, origins, frozenset(given))


def _refusal(error: InvalidError, layers: Sequence[Layer]) -> str:
    """The name under which a person gave the value, and what is wrong with it."""
    for layer in reversed(layers):
        if value_at(layer.values, error.path) is not None:
            return f"{layer.origin if layer.names_one else f'{layer.origin}: {error.path}'}: {error.message}"
    return str(error)


def command_line(
    program: Sequence[str], settings: Settings, flags: Flags, *, begin_from: Values | None = None
) -> str:
    """The command that makes these settings anew: flags where there are any, ``--set`` for the rest.

    Args:
        program: the words before the options.
        begin_from: values that the command begins from instead of the defaults.
    """
    of_flag = {path: name for name, paths in flags.items() for path in _as_tuple(paths)}
    named: dict[str, object] = {}
    assigned: list[str] = []
    for path, value in changed_values(settings, begin_from or {}).items():
        name = of_flag.get(path)
        alike = name and all(value_at(settings.plain(), each) == value for each in _as_tuple(flags[name]))
        if name and alike:
            named[name] = value
        else:
            assigned += ["--set", f"{path}={_as_toml(value)}"]
    words = [word for name, value in named.items() for word in _flag_words(name, value)]
    return shlex.join([*program, *words, *assigned])


def changed_values(settings: Settings, begin_from: Values) -> dict[str, object]:
    """Path to value, of every option that neither ``begin_from`` nor another value brings along."""
    kind, given = type(settings), settings.plain()
    whole = kind.checked(merge(begin_from, given)).plain()
    paths = [leaf.path for leaf in leaves(kind) if value_at(given, leaf.path) is not None]
    # From the end, since values imply others below them (a preset does); and from the whole, since a part of
    # the values may contradict itself, as a long warm-up does without the iterations that came with it.
    for path in reversed(paths):
        fewer = without(given, path)
        with suppress(FedFreeError):
            if kind.checked(merge(begin_from, fewer)).plain() == whole:
                given = fewer
    required = [leaf.path for leaf in leaves(kind) if leaf.default is REQUIRED]
    kept = {path: value_at(given, path) for path in (*required, *paths)}
    return {path: value for path, value in kept.items() if value is not None}


def given_values(settings: Settings) -> dict[str, Any]:
    """The fewest values, as tables, that come to these settings."""
    values: dict[str, Any] = {}
    for path, value in changed_values(settings, {}).items():
        values = merge(values, nested(path, value))
    return values


def _origin(settings: type[Settings], values: Values, layers: Sequence[Layer], path: str) -> str:
    for layer in reversed(layers):
        if value_at(layer.values, path) is not None:
            return layer.origin
    owner, table, rest = settings, values, path
    while rest:
        implied = owner.implied(table)
        if value_at(implied.values, rest) is not None:
            return implied.origin
        name, _, rest = rest.partition(".")
        inner = merge(implied.values, table).get(name)
        table = inner if isinstance(inner, Mapping) else {}
        field = owner.model_fields.get(name)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        ):
            break
        owner = field.annotation
    return DEFAULT


def _file_layer(settings: type[Settings], path: Path) -> Layer:
    return Layer(str(path), read_toml(settings, path))


def _assigned(settings: type[Settings], assignments: Sequence[str]) -> list[Layer]:
    """One layer for each ``KEY=VALUE``; raises ConfigError."""
    known, layers = {leaf.path for leaf in leaves(settings)}, []
    for text in assignments:
        path, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, for instance --set {min(known)}=…")
        if path not in known:
            raise ConfigError(f"--set {path}: {no_such_setting(settings, path)}")
        layers.append(Layer(f"--set {path}", nested(path, parse_value(value))))
    return layers


def _flagged(
    settings: type[Settings], flags: Flags, given: Mapping[str, Any], *, places: Collection[str]
) -> list[Layer]:
    as_typed = {leaf.path for leaf in leaves(settings) if leaf.kinds <= {Path, str, type(None)}}
    layers = []
    for name, value in given.items():
        if value is None or value == []:
            continue
        value = ",".join(value) if isinstance(value, list) else value
        values: dict[str, Any] = {}
        for path in _as_tuple(flags[name]):
            is_read = isinstance(value, str) and path not in as_typed
            values = merge(values, nested(path, parse_value(value) if is_read else value))
        layers.append(Layer(name.upper() if name in places else _option(name), values, names_one=True))
    return layers


def parse_value(text: str) -> object:
    """A value as TOML has it, or the text itself where it is none: ``3``, ``true``, ``[1, 2]``, ``conv4``."""
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return values["value"] if len(values) == 1 else text  # of several lines it is no value


def _parameters(
    settings: type[Settings], flags: Flags, under: Layer | None, *, places: Collection[str]
) -> list[inspect.Parameter]:
    by_path = {leaf.path: leaf for leaf in leaves(settings)}
    made = []
    for name, paths in flags.items():
        leaf = by_path[_as_tuple(paths)[0]]
        begun = value_at(under.values, leaf.path) if under else None
        if name in places:
            made.append(_place(name, leaf))
        else:
            made.append(_parameter(name, leaf, leaf.default if begun is None else begun))
    file = typer.Option("--config", help="TOML file with any of these settings.", show_default=False)
    others = typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeatable.")
    made.append(_keyword("config_file", Annotated[Path | None, file]))
    made.append(_keyword("assignments", Annotated[list[str] | None, others]))
    return made


def _place(name: str, leaf: Leaf) -> inspect.Parameter:
    argument = typer.Argument(help=leaf.help.removesuffix("."), metavar=name.upper(), show_default=False)
    return _keyword(name, Annotated[str | None, argument])


def _parameter(name: str, leaf: Leaf, default: object) -> inspect.Parameter:
    is_switch = leaf.kinds - {type(None)} == {bool}
    both_ways = f"{_option(name)}/{_option(f'no_{name}')}"
    declared = both_ways if is_switch and default is not False else _option(name)
    is_said = default not in (None, REQUIRED, ()) and default is not False and not isinstance(default, Path)
    says = f" (default: {_shown(default)})" if is_said else ""
    metavar = None if is_switch else _metavar(leaf)
    help = leaf.help.replace("``", "").removesuffix(".") + says
    option = typer.Option(declared, help=help, show_default=False, metavar=metavar)
    taken = bool if is_switch else list[str] if leaf.is_repeatable else str
    return _keyword(name, Annotated[taken | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(leaf: Leaf) -> str:
    choices = _choices(leaf.annotation)
    if choices:
        return "|".join(choices)
    names = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
    return next((word for kind, word in names.items() if kind in leaf.kinds), "TEXT")


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    return (
        [str(each) for each in typing.get_args(annotation)]
        if typing.get_origin(annotation) is typing.Literal
        else []
    )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _as_tuple(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _as_toml(value: object) -> str:
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def _flag_words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [_option(name if value else f"no_{name}")]
    return [_option(name), _shown(value)]


def _toml_lines(values: Values, table: tuple[str, ...]) -> list[tuple[str, str]]:
    """Lines of TOML, each with the path of the option on it, if any."""
    own = [
        (f"{name} = {_as_toml(value)}".replace("\n", " "), ".".join((*table, name)))
        for name, value in values.items()
        if not isinstance(value, Mapping)
    ]
    inner: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner += [("", ""), (f"[{'.'.join((*table, name))}]", ""), *_toml_lines(value, (*table, name))]
    return own + inner
