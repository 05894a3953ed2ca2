"""What every configuration of FedFREE has in common: frozen, validated, read from and written to TOML."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from fedfree.errors import ConfigError, FedFreeError


class Settings(BaseModel):
    """Base of every configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: object, *, origin: str) -> Self:
        """Validate plain values.

        Raises:
            ConfigError: one line that names ``origin``, the key and what is wrong with its value.
        """
        try:
            return cls.model_validate(values)
        except FedFreeError as error:
            raise ConfigError(f"{origin}: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "value"
            raise ConfigError(f"{origin}: {key}: {first['msg']} (got {first['input']!r})") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file; raises ConfigError as :meth:`parse` does."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        return cls.parse(values, origin=str(path))

    def to_toml(self) -> str:
        """Every value, defaults included; keys without a value are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_commented_toml(self) -> str:
        """As :meth:`to_toml`, for a person to edit: each key under what its docstring says."""
        return _commented(self, self.model_dump(mode="json", exclude_none=True), ())

    def sha256(self) -> str:
        """Hexadecimal hash of every value, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _commented(settings: Settings, values: dict[str, Any], table: tuple[str, ...]) -> str:
    """A table's own keys, then the tables inside it, which TOML wants last."""
    keys, tables = [], []
    for name, field in type(settings).model_fields.items():
        if name not in values:
            continue
        comment = _comment(field.description)
        inner, deeper = getattr(settings, name), (*table, name)
        if isinstance(inner, Settings):
            tables.append(f"\n{comment}[{'.'.join(deeper)}]\n{_commented(inner, values[name], deeper)}")
        elif isinstance(values[name], dict):
            tables.append(f"\n{comment}[{'.'.join(deeper)}]\n{tomli_w.dumps(values[name])}")
        else:
            keys.append(comment + tomli_w.dumps({name: values[name]}))
    return "".join(keys + tables)


def _comment(text: str | None) -> str:
    return "".join(f"# {line.strip()}\n" for line in (text or "").splitlines())
