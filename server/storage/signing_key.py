"""The key by which a coordinator signs what it hands out: a file of its run directory, for its owner."""

import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedfree.errors import ConfigError
from fedfree.host.files import PRIVATE, is_there, read_file, write_file
from fedfree.host.lock import changing
from fedfree.settings import Settings
from fedfree.signing import KEY_PATTERN, What, make_key, public_key, sign, succeed


class _Kept(Settings):
    """What the file holds, as JSON."""

    private: Annotated[str, Field(pattern=KEY_PATTERN)]
    successions: tuple[str, ...] = ()
    """From every earlier key, hexadecimal, as :func:`fedfree.signing.succeed` made them."""
    number: Annotated[int, Field(ge=0)] = 0
    """Of what was signed last."""


class SigningKey:
    """Reads its file at every use, so that another process may rotate it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def public(self) -> str:
        """What organisations know the coordinator by, hexadecimal; made when somebody first asks for it.

        Raises:
            ConfigError, StorageError: the file is damaged, or cannot be read or written.
        """
        return public_key(self._kept().private)

    def sign(self, what: What, manifest: bytes) -> bytes:
        """A signature with a larger number than any before; also where the clock went back."""
        self._kept()
        with changing(self.path):
            kept = self._read()
            number = max(int(time.time()), kept.number + 1)
            self._write(kept.model_copy(update={"number": number}))
        return self._sign(what, manifest, kept, number)

    def sign_again(self, what: What, manifest: bytes, number: int) -> bytes:
        """A signature over what has its number: of a start, 0."""
        return self._sign(what, manifest, self._kept(), number)

    def rotate(self) -> tuple[str, str]:
        """Take a new key, signed by the old one, which is forgotten; returns both public keys."""
        old = self.public
        with changing(self.path):
            kept = self._read()
            old, private = public_key(kept.private), make_key()
            link = succeed(kept.private, public_key(private)).hex()
            self._write(
                kept.model_copy(update={"private": private, "successions": (*kept.successions, link)})
            )
        return old, public_key(private)

    def _sign(self, what: What, manifest: bytes, kept: _Kept, number: int) -> bytes:
        return sign(what, manifest, kept.private, number, map(bytes.fromhex, kept.successions))

    def _kept(self) -> _Kept:
        if not is_there(self.path):
            with changing(self.path):
                if not is_there(self.path):
                    self._write(_Kept(private=make_key()))
        return self._read()

    def _read(self) -> _Kept:
        try:
            return _Kept.model_validate_json(read_file(self.path))
        except ValueError:  # whose words would show the key
            raise ConfigError(
                f"{self.path} is no signing key: restore it from a backup; without one remove it, and tell "
                "every organisation the key that is made anew (fedfree-server key show)"
            ) from None

    def _write(self, kept: _Kept) -> None:
        write_file(self.path, (kept.model_dump_json(indent=2) + "\n").encode(), mode=PRIVATE)
