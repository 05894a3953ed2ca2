"""Bearer tokens: one an organisation, of which the server keeps a salted hash and nothing else.

A token is 32 random bytes, so a plain SHA-256 is as slow to invert as any password hash would be.
"""

import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path

from fedfree.errors import AccessError, ConfigError
from fedfree.host.files import write_file
from fedfree.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class TokenHash(Settings):
    """What is kept of a token."""

    salt: str
    digest: str
    """Hexadecimal SHA-256 of salt and token."""


class Tokens:
    """The organisations that may call, in a file that is read at every call: a revocation counts at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, organisation: str) -> str:
        """Make an organisation's token and return it; it cannot be had a second time.

        Raises:
            ConfigError: not a name, or one that has a token.
        """
        require_name(organisation)
        hashes = self._read()
        if organisation in hashes:
            raise ConfigError(f"{organisation} has a token: revoke it before you add another")
        token, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
        self._write(hashes | {organisation: TokenHash(salt=salt, digest=_hash(salt, token))})
        return token

    def revoke(self, organisation: str) -> None:
        """Forget an organisation's token; raises ConfigError where there is none."""
        hashes = self._read()
        if organisation not in hashes:
            raise ConfigError(f"{organisation} has no token here: {', '.join(hashes) or 'nobody'} has")
        self._write({name: each for name, each in hashes.items() if name != organisation})

    def organisations(self) -> list[str]:
        """Everyone who has a token."""
        return sorted(self._read())

    def organisation_of(self, token: str) -> str:
        """Whose token this is; takes as long for a wrong one. Raises AccessError."""
        owners = [
            name
            for name, each in self._read().items()
            if hmac.compare_digest(_hash(each.salt, token), each.digest)
        ]
        if not owners:
            raise AccessError("the token is wrong or was revoked: ask the coordinator for a new one")
        return owners[0]

    def _read(self) -> dict[str, TokenHash]:
        if not self.path.exists():
            return {}
        try:
            values = json.loads(self.path.read_text())
        except ValueError as error:
            raise ConfigError(f"{self.path} is not valid JSON: {error}") from error
        return {name: TokenHash.parse(each, origin=f"{self.path}: {name}") for name, each in values.items()}

    def _write(self, hashes: dict[str, TokenHash]) -> None:
        values = {name: each.model_dump() for name, each in hashes.items()}
        write_file(self.path, (json.dumps(values, indent=2) + "\n").encode())


def require_name(organisation: str) -> None:
    """Refuse what cannot name an organisation everywhere, in files too; raises ConfigError."""
    if not _NAME.fullmatch(organisation):
        raise ConfigError(
            f"{organisation!r} is not a name for an organisation: use up to 64 letters, digits and ._-"
        )


def _hash(salt: str, token: str) -> str:
    return hashlib.sha256(f"{salt}{token}".encode()).hexdigest()
