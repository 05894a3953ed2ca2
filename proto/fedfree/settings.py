"""What every configuration of FedFREE has in common: frozen, validated, read from and written to TOML."""

import hashlib
import tomllib
from pathlib import Path
from typing import Self

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
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        return cls.parse(values, origin=str(path))

    def to_toml(self) -> str:
        """Every value, defaults included; keys without a value are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def sha256(self) -> str:
        """Hexadecimal hash of every value, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
