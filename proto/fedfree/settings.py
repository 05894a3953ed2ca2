"""What every configuration of FedFREE has in common: declared once, frozen, validated, read from TOML.

An option is a field of a settings class: its name, type, range and default, and a docstring whose first
paragraph is its help. Command lines (:mod:`fedfree.host.options`), TOML files, the reference in
docs/configuration.md and the command that makes a run anew all derive from it.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import math
import os
import textwrap
import tomllib
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from fedfree.errors import ConfigError, FedFreeError, printable

LONGEST_VALUE = 200
"""Characters of a refused value that are shown."""

LARGEST_INTEGER = 2**63 - 1
"""In TOML, and in what is sent."""

Values = Mapping[str, Any]
"""Tables inside tables, as TOML has them."""


@dataclass(frozen=True)
class Layer:
    """Values that came from one place; in a stack of layers the later ones win."""

    origin: str
    """For people: ``--epochs``, ``preset large``, the name of a file."""
    values: Values
    names_one: bool = False
    """Whether the origin names the option by itself, as ``--epochs`` does."""


@dataclass(frozen=True)
class Leaf:
    """One option: a field of a settings class, or of a table inside it."""

    path: str
    """For instance ``training.epochs``."""
    annotation: Any
    default: Any
    """``REQUIRED`` where there is none."""
    description: str

    @property
    def help(self) -> str:
        """The first sentence of the description, or its first lines up to a blank one."""
        return " ".join(self.description.split("\n\n")[0].split())

    @property
    def kinds(self) -> frozenset[type]:
        """The types a value may have."""
        return frozenset(_types_in(self.annotation))

    @property
    def is_repeatable(self) -> bool:
        """Whether it is marked as :class:`Repeatable`."""
        return any(isinstance(each, Repeatable) for each in typing.get_args(self.annotation)[1:])


REQUIRED = PydanticUndefined


class InvalidError(ConfigError):
    """A value that a settings class refuses, with its path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Settings(BaseModel):
    """Base of every configuration; unknown keys are refused, and the nearest valid one is named."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def implied(cls, given: Values) -> Layer:
        """What the values given bring with them where it was not given itself, such as a preset's own."""
        return Layer("", {})

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_what_pydantic_would_turn_into_something(cls, value: object, info: ValidationInfo) -> object:
        kinds = set(_types_in(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError("Input should be a number, not true or false")
        if Path in kinds and (wrong := refused_path(value)):
            raise ValueError(wrong)
        return value

    @field_validator("*")
    @classmethod
    def _refuse_what_nobody_can_reckon_with(cls, value: object, info: ValidationInfo) -> object:
        means_none = cls.model_fields[str(info.field_name)].default == math.inf
        if not means_none and any(
            isinstance(each, float) and not math.isfinite(each) for each in _each(value)
        ):
            raise ValueError("Input should be a finite number")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"Input should be at most {LARGEST_INTEGER}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _add_implied(cls, given: Any) -> Any:
        return merge(cls.implied(given).values, given) if isinstance(given, Mapping) else given

    @classmethod
    def parse(cls, values: object, *, origin: str) -> Self:
        """Validate plain values.

        Raises:
            ConfigError: one line that names ``origin``, the key and what is wrong with its value.
        """
        try:
            return cls.checked(values)
        except FedFreeError as error:
            raise ConfigError(f"{origin}: {error}") from error

    @classmethod
    def checked(cls, values: object) -> Self:
        """Validate plain values; raises InvalidError, or whatever FedFreeError a validator raises."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise InvalidError(path, no_such_setting(cls, path)) from error
            message = complaint(first)
            got = (
                ""
                if first["type"] == "missing"
                else f" (got {printable(repr(first['input']), LONGEST_VALUE)})"
            )
            raise InvalidError(path or "value", f"{message}{got}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file; raises ConfigError as :meth:`parse` does."""
        return cls.parse(read_toml(cls, path), origin=str(path))

    def to_toml(self) -> str:
        """Every value, defaults included; keys without a value are left out."""
        return _in_unicode(tomli_w.dumps(self.plain()))

    def to_commented_toml(self) -> str:
        """As :meth:`to_toml`, for a person to edit: each key under what its docstring says."""
        described = {leaf.path: leaf.description for leaf in leaves(type(self))}
        tables = dict(_tables(type(self)))
        text = _render(self.plain(), (), lambda path: _comment(described.get(path) or tables.get(path)))
        return _in_unicode(text)

    def plain(self) -> dict[str, Any]:
        """Every value as TOML holds it, defaults included; keys without a value are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def sha256(self) -> str:
        """Hexadecimal hash of every value, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def complaint(error: ErrorDetails) -> str:
    """What is wrong with one value, in words for whoever wrote it, who need not know of fields."""
    if error["type"] == "missing":
        return "it is missing, and has no default"
    return error["msg"].removeprefix("Value error, ")


def refused_path(value: object) -> str:
    """Why nothing is read or written at a path that somebody named; empty where it can be.

    An empty one, as of a variable of the shell that is not set, would be the working directory; control
    characters would be obeyed by a terminal wherever the path is shown. The ``~`` of ``--out=~/runs`` is not
    read by a shell, and would be a folder of that name in the working directory.
    """
    if value == "":
        return "names no file or folder: say which (the working directory is .)"
    if isinstance(value, str | Path) and any(unicodedata.category(each) == "Cc" for each in str(value)):
        return f"names {str(value)!r}, which has a control character in it: choose another name, or rename it"
    if isinstance(value, str | Path) and (meant := _expanded(str(value))) != str(value):
        return f"names {str(value)!r}, where no shell put the home: write {meant}"
    return ""


def _expanded(path: str) -> str:
    """As a shell has it: a name that begins with ``~`` and no user's is a name like any other."""
    return os.path.expanduser(path)  # noqa: PTH111


def read_toml(settings: type[Settings], path: Path) -> dict[str, Any]:
    """The values of a TOML file; relative paths in it are relative to its folder. Raises ConfigError."""
    if path.exists() and not path.is_file():  # a pipe may never speak, and a device never end
        what = "a folder where a file is expected" if path.is_dir() else "no file"
        raise ConfigError(f"cannot read the configuration {path}: it is {what}: name a file")
    try:
        values = parse_toml(path.read_text(encoding="utf-8-sig"))  # editors on Windows put a mark before it
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for leaf in leaves(settings):
        found = value_at(values, leaf.path)
        if Path in leaf.kinds and isinstance(found, str) and found:
            try:
                there = path.resolve().parent / Path(found).expanduser()
            except RuntimeError as error:  # ~somebody
                raise ConfigError(f"{path}: {leaf.path}: {found!r} begins with no user's home") from error
            values = merge(values, nested(leaf.path, str(there)))
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a text; raises ValueError where it is no TOML, or nested or long beyond reason."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its arrays or tables are nested too deeply") from None


def merge(under: Values, over: Values) -> dict[str, Any]:
    """Both, table by table; where both have a value, that of ``over``."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both_tables = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(below, value) if both_tables else value  # type: ignore[arg-type]
    return merged


def nested(path: str, value: object) -> dict[str, Any]:
    """``{"training": {"epochs": 3}}`` of ``training.epochs`` and 3."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def without(values: Values, path: str) -> dict[str, Any]:
    """Tables without the value of ``training.epochs``."""
    name, _, rest = path.partition(".")
    others = {each: value for each, value in values.items() if each != name}
    return others | {name: without(values[name], rest)} if rest else others


def value_at(values: object, path: str, default: object = None) -> Any:
    """The value of ``training.epochs`` in tables, in settings, or in a mixture of both."""
    for name in path.split("."):
        if isinstance(values, Mapping) and name in values:
            values = values[name]
        elif isinstance(values, BaseModel) and name in type(values).model_fields:
            values = getattr(values, name)
        else:
            return default
    return values


def leaves(settings: type, prefix: str = "") -> Iterator[Leaf]:
    """Every option of a settings class, those of its tables included, in the order of declaration."""
    for name, annotation, default, description in _fields(settings):
        inner = _table_in(annotation)
        if inner is None:
            yield Leaf(prefix + name, annotation, default, description)
        else:
            for leaf in leaves(inner, f"{prefix}{name}."):
                local = leaf.path.removeprefix(f"{prefix}{name}.")
                yield dataclasses.replace(leaf, default=value_at(_as_table(default), local, leaf.default))


def no_such_setting(settings: type[Settings], path: str) -> str:
    """That there is no such option, and which one may have been meant."""
    known = [leaf.path for leaf in leaves(settings)]
    last = path.rpartition(".")[2]
    close = [each for each in known if each.rpartition(".")[2] == last]
    close += difflib.get_close_matches(path, known, n=1)
    close += [
        each for each in known if difflib.get_close_matches(last, [each.rpartition(".")[2]], n=1, cutoff=0.75)
    ]
    remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(known[:8])}, …"
    return f"no such setting: {remedy}"


def as_list(value: object) -> object:
    """``a,b`` as well as a list, and a single value as a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")] if value else []
    return value if isinstance(value, list | tuple) else [value]


Listed = BeforeValidator(as_list)
"""Lets a field that holds several values be written with commas between them."""


class Repeatable:
    """Marks a text that may list several, with commas between them; its flag may be given several times."""


def _tables(settings: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and description of each table."""
    for name, annotation, _, description in _fields(settings):
        if (inner := _table_in(annotation)) is not None:
            yield prefix + name, description or inspect.getdoc(inner) or ""
            yield from _tables(inner, f"{prefix}{name}.")


def _fields(owner: type) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and description of each field of a settings class or dataclass."""
    if issubclass(owner, BaseModel):
        for name, field in owner.model_fields.items():
            default = _default_of(field)
            bounded = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            yield name, bounded, default, field.description or ""
        return
    described = _attribute_docstrings(owner)
    hints = typing.get_type_hints(owner)
    for each in dataclasses.fields(owner):  # type: ignore[arg-type]
        default = REQUIRED if each.default is dataclasses.MISSING else each.default
        yield each.name, hints[each.name], default, described.get(each.name, "")


def _default_of(field: FieldInfo) -> Any:
    """None where none can be made here, such as a folder below no home: help is for whoever lacks one too."""
    try:
        return field.get_default(call_default_factory=True)
    except FedFreeError:
        return None


def _attribute_docstrings(owner: type) -> dict[str, str]:
    """The string after each annotated name in a class body, as pydantic reads it for its own classes."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if is_text:
                found[before.target.id] = inspect.cleandoc(str(after.value.value))  # type: ignore[attr-defined]
    return found


def _table_in(annotation: Any) -> type | None:
    """The settings class or dataclass whose values a field holds as a table; None for a plain value."""
    for each in _types_in(annotation):
        if issubclass(each, Settings):
            return each
        if dataclasses.is_dataclass(each) and not hasattr(each, "parse"):
            return each
    return None


def _types_in(annotation: Any) -> Iterator[type]:
    """The classes in ``Annotated``, unions and tuples."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _types_in(typing.get_args(annotation)[0])
    elif origin is typing.Literal:
        yield from {type(value) for value in typing.get_args(annotation)}
    elif origin in (typing.Union, types.UnionType, tuple, list):
        for inner in typing.get_args(annotation):
            yield from _types_in(inner)
    elif isinstance(annotation, type):
        yield annotation


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else [value]


def _as_table(default: Any) -> Any:
    return (
        dataclasses.asdict(default)
        if dataclasses.is_dataclass(default) and not isinstance(default, type)
        else default
    )


def _in_unicode(text: str) -> str:
    """TOML that can be written; raises ConfigError where a path has bytes that are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = printable(text[: error.end].rpartition("\n")[2], LONGEST_VALUE)
        raise ConfigError(f"{line}: a name that is not UTF-8 cannot stand in TOML: rename it") from error
    return text


def _render(values: Values, table: tuple[str, ...], comment: Callable[[str], str]) -> str:
    """A table's own keys, then the tables inside it, which TOML wants last; each below its comment."""
    keys, tables = [], []
    for name, value in values.items():
        deeper = (*table, name)
        above = comment(".".join(deeper))
        if isinstance(value, Mapping):
            tables.append(f"\n{above}[{'.'.join(deeper)}]\n{_render(value, deeper, comment)}")
        else:
            keys.append(above + tomli_w.dumps({name: value}))
    return "".join(keys + tables)


def _comment(text: str | None) -> str:
    return "".join(f"# {line.strip()}".rstrip() + "\n" for line in (text or "").splitlines())
