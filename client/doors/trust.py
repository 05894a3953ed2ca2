"""Which key a coordinator signs with, as its organisation knows it: pinned, or written down on first use."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedfree.errors import ConfigError, SignatureError
from fedfree.host.files import is_there, read_file, write_file
from fedfree.host.lock import changing
from fedfree.host.places import state_folder
from fedfree.settings import Settings
from fedfree.signing import KEY_PATTERN, Signed, What, read_signature

log = logging.getLogger(__name__)

Key = Annotated[str, Field(pattern=KEY_PATTERN)]


class Known(Settings):
    """What is written down of a coordinator."""

    pinned: Key
    """The key that a person gave, or that was seen first."""
    key: Key
    """The one that it has been replaced by since, or the same."""
    newest: Annotated[int, Field(ge=0)] = 0
    """Number of the newest meta-learner that came from there."""


@dataclass(frozen=True)
class Trust:
    """What an organisation takes from its coordinator, and where it writes down what it knows of it."""

    path: Path
    pinned: str | None = None
    """The coordinator's key as a person was given it, hexadecimal; None to believe the first that is seen."""
    allow_older: bool = False
    """Whether a meta-learner may be older than the newest that came from there."""

    @classmethod
    def at(cls, door: str, pinned: str | None = None, *, allow_older: bool = False) -> "Trust":
        """Towards the coordinator behind HOST:PORT, for this user."""
        return cls(state_folder() / "coordinators" / f"{door}.json", pinned, allow_older)

    @classmethod
    def beside(cls, config: Path, pinned: str | None = None) -> "Trust":
        """Towards the coordinator of a node, whose configuration this file is."""
        return cls(config.with_suffix(".coordinator.json"), pinned)

    def words(self) -> str:
        """What is known of the coordinator's key, in one line; raises ConfigError as :meth:`check`."""
        known = self._known()
        if known is None:
            return "the coordinator's key is not known yet: the first that is seen will be believed"
        how = "pinned" if self.pinned else "the first that was seen"
        since = "" if known.key == known.pinned else f", which has replaced {known.pinned}"
        return f"the coordinator's key is {known.key}{since} ({how})"

    def check(self, what: What, manifest: bytes, signature: bytes) -> Signed:
        """Refuse what is not this coordinator's, before it is used; :meth:`keep` it once all of it is here.

        Raises:
            SignatureError: no signature, a wrong one, one by another key, or an older meta-learner.
            ConfigError: what was written down is damaged.
        """
        signed, known = read_signature(what, manifest, signature), self._known()
        if known is None:
            log.warning(
                "this coordinator signs with the key %s, seen for the first time and believed from now on: "
                "compare it with what the coordinator shows (fedfree-server key show); kept in %s",
                signed.key,
                self.path,
            )
            return signed
        if not signed.follows(known.key):
            raise SignatureError(
                f"the {what} is signed by the key {signed.key}, known here is {known.key}: ask the "
                "coordinator by another way which one is right, and only where it is the new one, "
                + ("name that as its key" if self.pinned else f"remove {self.path}")
            )
        if what == "meta-learner" and signed.number < known.newest and not self.allow_older:
            raise SignatureError(
                f"the meta-learner is number {signed.number} of this coordinator, and number {known.newest} "
                "was here before: ask the coordinator why it hands out an older one; to take it all the "
                f"same say --allow-older, or at a Flower node remove {self.path}"
            )
        return signed

    def keep(self, what: What, signed: Signed) -> None:
        """Write down what :meth:`check` let in."""
        with changing(self.path):
            known = self._known() or Known(pinned=signed.key, key=signed.key)
            if signed.key != known.key:
                log.warning("this coordinator has replaced its key %s by %s", known.key, signed.key)
            newest = max(known.newest, signed.number) if what == "meta-learner" else known.newest
            kept = Known(pinned=known.pinned, key=signed.key, newest=newest)
            if kept != self._read():
                write_file(self.path, (kept.model_dump_json(indent=2) + "\n").encode())

    def accept(self, what: What, manifest: bytes, signature: bytes) -> None:
        """As :meth:`check` and :meth:`keep` at once, of what is here already."""
        self.keep(what, self.check(what, manifest, signature))

    def _known(self) -> Known | None:
        """What holds of the coordinator now: what a person says, over what was written down before."""
        kept = self._read()
        if self.pinned is None or (kept and kept.pinned == self.pinned):
            return kept
        if kept and kept.key == self.pinned:
            return kept.model_copy(update={"pinned": self.pinned})
        return Known(pinned=self.pinned, key=self.pinned)

    def _read(self) -> Known | None:
        if not is_there(self.path):
            return None
        try:
            return Known.model_validate_json(read_file(self.path))
        except ValueError as error:
            raise ConfigError(
                f"{self.path} is damaged: ask the coordinator for its key (fedfree-server key show), name "
                "that, and remove the file"
            ) from error
