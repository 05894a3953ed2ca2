"""Bearer tokens: one an organisation, of which the server keeps a salted hash and nothing else.

A token is 32 random bytes, so a plain SHA-256 is as slow to invert as any password hash would be.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime

from fedfree.errors import AccessError, ConfigError
from fedfree.host.files import PRIVATE, is_there, read_file, write_file
from fedfree.host.lock import changing
from fedfree.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_TOKEN_CHARACTERS = 200
"""Longer ones are refused unread; ours have 43."""


class TokenHash(Settings):
    """What is kept of a token."""

    salt: str
    digest: str
    """Hexadecimal SHA-256 of salt and token."""
    expires: AwareDatetime | None = None
    """UTC; None for one that holds until it is revoked."""


class Tokens:
    """The organisations that may call, in a file that is read at every call: a revocation counts at once.

    Several processes may change it at once, and none undoes what another did.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._clock = clock

    def add(self, organisation: str, *, expires_days: float | None = None) -> str:
        """Make an organisation's token and return it; it cannot be had a second time.

        Args:
            expires_days: after so many days it is refused; None for never.

        Raises:
            ConfigError: not a name, or one that has a token.
        """
        require_name(organisation)
        with self._changed() as hashes:
            if organisation in hashes:
                raise ConfigError(
                    f"{organisation} has a token: revoke it before you add another, or rotate it"
                )
            hashes[organisation], token = self._made(expires_days)
        return token

    def rotate(self, organisation: str, *, expires_days: float | None = None) -> str:
        """Return a new token in the place of an organisation's old one, which is refused from now on.

        Raises:
            ConfigError: it has none.
        """
        with self._changed() as hashes:
            _require(organisation, hashes)
            hashes[organisation], token = self._made(expires_days)
        return token

    def revoke(self, organisation: str) -> None:
        """Forget an organisation's token; raises ConfigError where there is none."""
        with self._changed() as hashes:
            _require(organisation, hashes)
            del hashes[organisation]

    def organisations(self) -> list[str]:
        """Everyone who has a token."""
        return sorted(self._read())

    def expiries(self) -> dict[str, datetime | None]:
        """When each organisation's token expires; None for never."""
        return {name: each.expires for name, each in sorted(self._read().items())}

    def organisation_of(self, token: str) -> str:
        """Whose token this is; takes as long for a wrong one.

        Raises:
            AccessError: nobody's. Unknown and revoked ones are told alike, so nobody learns who is here; that
                one has expired is told to whoever holds it.
        """
        owners = [
            (name, each.expires)
            for name, each in self._read().items()
            if hmac.compare_digest(_hash(each.salt, token[:MAX_TOKEN_CHARACTERS]), each.digest)
        ]
        if not owners:
            raise AccessError("the token is wrong or was revoked: ask the coordinator for a new one")
        owner, expires = owners[0]
        if expires is not None and self._clock() >= expires:
            raise AccessError(f"the token expired on {expires:%Y-%m-%d}: ask the coordinator for a new one")
        return owner

    def _made(self, expires_days: float | None) -> tuple[TokenHash, str]:
        token, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
        expires = None if expires_days is None else self._clock() + timedelta(days=expires_days)
        return TokenHash(salt=salt, digest=_hash(salt, token), expires=expires), token

    @contextmanager
    def _changed(self) -> Iterator[dict[str, TokenHash]]:
        """What is kept, to change: written when the block ends without an error, for its owner alone."""
        with changing(self.path):
            hashes = self._read()
            yield hashes
            values = {name: each.model_dump(mode="json") for name, each in hashes.items()}
            write_file(self.path, (json.dumps(values, indent=2) + "\n").encode(), mode=PRIVATE)

    def _read(self) -> dict[str, TokenHash]:
        if not is_there(self.path):
            return {}
        try:
            values = json.loads(read_file(self.path))
            for name, _ in values.items():
                require_name(name)
            return {
                name: TokenHash.parse(each, origin=f"{self.path}: {name}") for name, each in values.items()
            }
        except (ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{self.path} is not valid JSON: {error}") from error


def _require(organisation: str, hashes: dict[str, TokenHash]) -> None:
    if organisation not in hashes:
        raise ConfigError(f"{organisation} has no token here: {', '.join(hashes) or 'nobody'} has")


def require_name(organisation: str) -> None:
    """Refuse what cannot name an organisation everywhere, in files too; raises ConfigError."""
    if not _NAME.fullmatch(organisation):
        raise ConfigError(
            f"{organisation!r} is not a name for an organisation: use up to 64 letters, digits and ._-"
        )


def _hash(salt: str, token: str) -> str:
    return hashlib.sha256(f"{salt}{token}".encode()).hexdigest()
