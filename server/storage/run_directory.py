"""The run directory: everything a run needs and leaves, and how engines and apps agree on it.

::

    server.toml                   what the server is configured with
    organisations/<index>.toml    what each virtual organisation is configured with (simulations only)
    start/                        the public start of the run, where it has one; never another
    start.sha256                  its identity, against which it is held whenever it is read
    further_starts/<sha256>/      others that organisations may begin from instead, where it has several
    public_images.safetensors     images that the coordinator named as public, where any were; never others
    store/                        contributions, see server.storage.store
    checkpoint.safetensors        the state of learning, until the run is over
    meta_learner.safetensors      the result; beside it .manifest.pb, .signature.pb, .card.md: all links
    published/<hash>/             the four, by the hash of the manifest
    published/current             leads there: one rename replaces them all
    signing.json                  the key by which what is handed out is signed; for its owner alone
    recovered.safetensors         one recovered image a model and class, by contribution id
    id                            a random name, by which logs tell runs apart
    events.jsonl                  one line an event, with its time
    adaptation.json               what the organisations answered to the meta-learner
    tokens.json                   hashes of gRPC callers' tokens, see server.doors.tokens
    error.txt                     why the run failed, one line; absent otherwise
"""

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedfree.codec import MetaLearner, encode_meta_learner, sha256, short
from fedfree.errors import ConfigError, ContributionError, FedFreeError, SignatureError, StorageError
from fedfree.host.files import (
    append_line,
    discard,
    is_there,
    named,
    point,
    read_file,
    require_file,
    sync,
    write_file,
    write_once,
)
from fedfree.host.lock import changing, exclusive
from fedfree.host.starts import MANIFEST as START_MANIFEST
from fedfree.host.starts import describe_folder, has_start, keep_start, load_start
from fedfree.signing import read_signature
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.events import Event, OnEvent
from server.learning.public_images import PublicImages
from server.storage.card import model_card
from server.storage.public_images import read_kept, read_public_images, write_kept
from server.storage.signing_key import SigningKey
from server.storage.store import ACCEPTED, Store

log = logging.getLogger(__name__)

_IDENTITY = re.compile("[0-9a-f]{64}")
SIGNING_KEY = "signing.json"
PUBLIC_IMAGE_SIZE = 128
"""Pixels a side that public images are kept at without a start; learning brings them to its own size."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and what is written there."""

    path: Path

    def __post_init__(self) -> None:
        require_file(self.server_toml)
        if not self.server_toml.is_file():
            raise ConfigError(
                f"{self.path.absolute()} is not a prepared run: it has no server.toml; "
                "prepare one with `fedfree-sim prepare`"
            )

    @property
    def id(self) -> str:
        """A random name, made when somebody first asks for it."""
        file = self.path / "id"
        if not file.exists():
            write_once(file, uuid.uuid4().hex[:12].encode())
        return read_file(file).decode()

    @property
    def server_toml(self) -> Path:
        return self.path / "server.toml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def error(self) -> Path:
        return self.path / "error.txt"

    @property
    def adaptation(self) -> Path:
        return self.path / "adaptation.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens.json"

    @property
    def weights(self) -> Path:
        return self.path / "meta_learner.safetensors"

    @property
    def manifest(self) -> Path:
        return self.path / "meta_learner.manifest.pb"

    @property
    def signature(self) -> Path:
        return self.path / "meta_learner.signature.pb"

    @property
    def card(self) -> Path:
        """The model card, for people."""
        return self.path / "meta_learner.card.md"

    @property
    def signing_key(self) -> SigningKey:
        """The key by which what is handed out is signed, made when somebody first asks for it."""
        return SigningKey(self.path / SIGNING_KEY)

    @property
    def recovered(self) -> Path:
        return self.path / "recovered.safetensors"

    def config(self) -> ServerConfig:
        """The server's configuration; raises ConfigError, also where the file lost all that it said."""
        if not read_file(self.server_toml).strip(b"\0 \t\r\n"):
            raise ConfigError(
                f"{self.server_toml} is empty, and was not when it was written: restore it from a backup, or "
                "the run would be learned with other settings"
            )
        return ServerConfig.read(self.server_toml)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Learn here alone: raises ConfigError, naming the other, where another process learns here."""
        return exclusive(self.path)

    def door_held(self) -> contextlib.AbstractContextManager[None]:
        """Receive here alone, or two doors would each give every organisation its share; as :meth:`held`."""
        return exclusive(self.path / ".door")

    def store(self) -> Store:
        """The store, created where there is none."""
        return Store(self.path / "store", self.start, self.further_starts)

    @property
    def start_folder(self) -> Path:
        return self.path / "start"

    def start(self) -> LoadedStart | None:
        """The public start of the run, checked; None where organisations begin from random weights.

        Raises:
            StorageError: it is there and cannot be used.
        """
        identity = self.start_sha256()
        return _read_adopted(identity, self.start_folder) if identity else None

    @property
    def start_identity(self) -> Path:
        return self.path / "start.sha256"

    def start_sha256(self) -> str:
        """The start's identity, hexadecimal, as it was adopted; empty without one."""
        if is_there(self.start_identity):
            return read_file(self.start_identity).decode(errors="replace")
        return sha256(read_file(self.start_folder / START_MANIFEST)) if has_start(self.start_folder) else ""

    @property
    def further_folder(self) -> Path:
        return self.path / "further_starts"

    def start_folders(self) -> dict[str, Path]:
        """Identity of every start of the run to its folder, that of the meta-learner first."""
        if not (own := self.start_sha256()):
            return {}
        further = (each for each in self.further_folder.glob("*") if _IDENTITY.fullmatch(each.name))
        return {own: self.start_folder, **{each.name: each for each in sorted(further)}}

    def further_starts(self) -> list[LoadedStart]:
        """The starts that organisations may begin from instead, checked; raises as :meth:`start`."""
        return [_read_adopted(*each) for each in list(self.start_folders().items())[1:]]

    def adopt_start(self, folder: Path, *further: Path) -> None:
        """Let the run begin from a start, for good; the same start again changes nothing, or mends it.

        Args:
            further: starts that organisations may begin from instead. The meta-learner begins from the first.

        Raises:
            ConfigError: the run has another start, or accepted contributions that began from none, or a
                configuration of somebody's own that is not for a start.
            StorageError, ContributionError: a folder that cannot be used.
        """
        given = [load_start(each) for each in (folder, *further)]
        with changing(self.start_folder):
            self._require_adoptable([folder, *further], [each.start.sha256 for each in given])
            config = self.config()
            is_own = config != ServerConfig.begun(config.collect, has_start=False)
            if is_own:
                config.require_preset_for(has_start=True)
            self._keep_starts(*given)
            if not is_own:  # nobody changed more than whom to wait for
                from_start = ServerConfig.begun(config.collect, has_start=True)
                write_file(self.server_toml, from_start.to_commented_toml().encode())

    def _keep_starts(self, first: LoadedStart, *further: LoadedStart) -> None:
        """Write what is not there, whole; the first comes last, since with it the run has its starts."""
        if not self.start_sha256():
            discard(self.further_folder)  # of a process that was killed
        for each in further:
            if each.start != first.start and not self._is_sound(each.start.sha256):
                keep_start(self.further_folder / each.start.sha256, each.start, each.weights)
                with named(f"cannot write {self.further_folder}"):
                    sync(self.further_folder)
        if not self._is_sound(first.start.sha256):
            keep_start(self.start_folder, first.start, first.weights)
        write_file(self.start_identity, first.start.sha256.encode())

    def _is_sound(self, identity: str) -> bool:
        """Whether the run has a start, undamaged."""
        try:
            return bool(_read_adopted(identity, self.start_folders()[identity]))
        except (KeyError, FedFreeError):
            return False

    def _require_adoptable(self, folders: Sequence[Path], identities: Sequence[str]) -> None:
        """Refuse others than the run's starts, and any that accepted contributions did not begin from."""
        own = list(self.start_folders())
        for position, (folder, identity) in enumerate(zip(folders, identities, strict=True)):
            if own and identity not in (own if position else own[:1]):
                raise ConfigError(
                    f"{folder} holds the start {short(identity)}, and {self.path} began from "
                    f"{', '.join(map(short, own))}: a run keeps its start, so choose another run directory"
                )
        if not own and self.store().ids(ACCEPTED):
            raise ConfigError(
                f"{self.path} has accepted contributions that began from no public start: choose another run "
                f"directory for the start {short(identities[0])}"
            )

    @property
    def _kept_public_images(self) -> Path:
        return self.path / "public_images.safetensors"

    def public_images(self) -> PublicImages | None:
        """What teachers are shown beside recovered images; None where the coordinator named none.

        Raises:
            StorageError, ConfigError: they are there and cannot be used.
        """
        return read_kept(self._kept_public_images) if self._kept_public_images.exists() else None

    def adopt_public_images(self, folder: Path, *, size: int | None = None) -> None:
        """Read the public images of a folder or zip into the run, for good; the same again change nothing.

        Args:
            size: pixels a side that they are kept at, where the run has no start that says so.

        Raises:
            ConfigError: the run has others, has begun to learn without, or would show them to nobody.
            DataError: a folder that is missing, or holds too few images that can be read.
            StorageError: they cannot be written.
        """
        config, start = self.config(), self.start()
        config.require_use_of_public_images()
        side = start.start.input.height if start else size or PUBLIC_IMAGE_SIZE
        channels = start.start.input.channels if start else 3
        given = read_public_images(folder, size=side, channels=channels, seed=config.seed)
        with changing(self._kept_public_images):
            own = self.public_images()
            if own is not None and own.sha256 != given.sha256:
                raise ConfigError(
                    f"{folder} holds the public images {short(given.sha256)}, and {self.path} has "
                    f"{short(own.sha256)}: a run keeps its public images, so choose another run directory"
                )
            if own is None and self.checkpoint.exists():
                raise ConfigError(
                    f"{self.path} has begun to learn without public images: go on without "
                    "--public-images, or choose another run directory"
                )
            if own is None:
                write_kept(self._kept_public_images, given)
        log.info("%d public images, sha256 %s, beside recovered images", len(given), given.sha256)

    def require_preset(self) -> None:
        """Raise ConfigError where the preset is not for where the models begin: ask before anybody trains."""
        self.config().require_preset_for(has_start=bool(self.start_sha256()))

    def write_meta_learner(self, meta_learner: MetaLearner) -> bytes:
        """Publish the result in the place of the one before, which is removed, and return the manifest.

        Whoever reads meanwhile, or after a kill, finds the one or the other, never weights of one with the
        manifest of the other.
        """
        manifest = encode_meta_learner(meta_learner)
        identity, current = sha256(manifest), self._published / "current"
        write_file(self._published / identity / self.weights.name, meta_learner.weights)
        write_file(self._published / identity / self.manifest.name, manifest)
        signature = self.signing_key.sign("meta-learner", manifest)
        write_file(self._published / identity / self.signature.name, signature)
        start = describe_folder(self.start_folder) if has_start(self.start_folder) else None
        card = model_card(meta_learner, identity, start)
        write_file(self._published / identity / self.card.name, card.encode())
        point(current, identity)
        for each in (self.weights, self.manifest, self.signature, self.card):
            point(each, f"{self._published.name}/{current.name}/{each.name}")
        for other in self._published.iterdir():
            if other.name not in (identity, current.name):
                discard(other)
        return manifest

    def require_publishable(self) -> None:
        """Ask before anybody learns for hours what :meth:`write_meta_learner` would fail at then.

        Raises:
            ConfigError, StorageError: the signing key is damaged or cannot be read, or something else lies
                where the meta-learner goes.
        """
        _ = self.signing_key.public
        if os.path.lexists(self._published) and not self._published.is_dir():
            raise StorageError(
                f"{self._published} is a file where a folder is expected: move it away, for the meta-learner"
            )
        for file in self._links:
            if file.is_dir() and not file.is_symlink():
                raise StorageError(
                    f"{file} is a folder where a file is expected: move it away, for the meta-learner"
                )

    def withdraw_meta_learner(self) -> None:
        """Hand out no meta-learner, nor what was recovered for it, until another is published."""
        for link in self._links:
            discard(link)
        discard(self._published)

    @property
    def _published(self) -> Path:
        return self.path / "published"

    @property
    def _links(self) -> tuple[Path, ...]:
        """All that leads to what is handed out, and what was recovered for it, as they are taken away."""
        current = self._published / "current"
        return current, self.manifest, self.weights, self.signature, self.card, self.recovered

    @property
    def published(self) -> Path:
        """The folder of the meta-learner that is handed out now; another one once another is published."""
        return self.manifest.resolve().parent

    def published_signature(self, manifest: bytes, folder: Path | None = None) -> bytes:
        """The signature of a meta-learner that was published here, by the key of now.

        Args:
            folder: where it lies (default: what is handed out now).

        Raises:
            SignatureError, StorageError: it is none over this manifest by this coordinator, or there is none:
                then somebody else wrote the manifest, or an earlier release, and it is not handed out.
        """
        signature = read_file((folder or self.published) / self.signature.name)
        signed, key = read_signature("meta-learner", manifest, signature), self.signing_key
        if signed.key == key.public:
            return signature
        again = key.sign_again("meta-learner", manifest, signed.number)
        if not read_signature("meta-learner", manifest, again).follows(signed.key):
            raise SignatureError(f"the meta-learner is signed by the key {signed.key}, and that is not ours")
        return again

    def start_signature(self, manifest: bytes) -> bytes:
        """Of a start of this run. It has no number: a start is never followed by a newer one."""
        return self.signing_key.sign_again("start", manifest, 0)

    def write_recovered(self, gallery: Mapping[str, Tensor]) -> None:
        """Write what was recovered, uint8 [classes, channels, size, size] for each contribution id."""
        images = {identity: each.cpu().contiguous() for identity, each in gallery.items()}
        write_file(self.recovered, safetensors.torch.save(images))

    def read_recovered(self) -> dict[str, Tensor]:
        """What :meth:`write_recovered` wrote, in the order of the ids."""
        # safetensors gives tensors in another order each time, and a picture would have other rows.
        return dict(sorted(safetensors.torch.load(read_file(self.recovered)).items()))

    def read_events(self) -> list[Event]:
        """Every event so far, of earlier starts of the same run too."""
        if not self.events.exists():
            return []
        return list(events_from_lines(read_file(self.events).decode(errors="replace").splitlines()))

    def write_adaptation(self, replies: Sequence[Mapping[str, object]]) -> None:
        """Write what the organisations answered."""
        write_file(self.adaptation, (json.dumps(replies, indent=2) + "\n").encode())

    def failure(self) -> str:
        """Why the run failed, as :meth:`write_error` wrote it; empty where it did not."""
        return read_file(self.error).decode(errors="replace").strip() if is_there(self.error) else ""

    def write_error(self, error: BaseException) -> None:
        """Write why the run failed, for an engine that cannot see the exception."""
        reason = str(error) if isinstance(error, FedFreeError) else repr(error)
        write_file(self.error, " ".join(reason.split()).encode() + b"\n")

    def recorded(self, on_event: OnEvent) -> OnEvent:
        """An observer that appends each event to events.jsonl, then hands it on."""

        def record(event: Event) -> None:
            append_line(self.events, event_to_line(event))
            on_event(event)

        return record


def _read_adopted(identity: str, folder: Path) -> LoadedStart:
    """A start of a run, held against its identity; raises StorageError where it is damaged."""
    why = "a file of it is missing"
    if has_start(folder):
        try:
            begun = load_start(folder)
        except ContributionError as error:
            why = str(error)
        else:
            if begun.start.sha256 == identity:
                return begun
            why = f"its manifest hashes to {short(begun.start.sha256)}"
    raise StorageError(
        f"the start {short(identity)} in {folder} is damaged ({why}): name it again, by --start FOLDER "
        "at learn, serve or up (of several starts all of them, in the same order), and it is written anew"
    )


def event_to_line(event: Event) -> str:
    """An event as one line of JSON, with the time in UTC."""
    time = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds")
    fields = {"time": time, "stage": event.stage, "kind": event.kind, "values": dict(event.values)}
    return json.dumps(fields) + "\n"


def events_from_lines(lines: Iterable[str]) -> Iterator[Event]:
    """The events of :func:`event_to_line`; what is half written, or counts by no number, is passed over."""
    for line in lines:
        try:
            fields = json.loads(line)
            time = datetime.fromisoformat(fields["time"]).astimezone(UTC).timestamp()
            event = Event(str(fields["stage"]), str(fields["kind"]), dict(fields["values"]), time)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if _counts(event):
            yield event


_COUNTED = {
    ("learn", "progress"): ("iteration", "of"),
    ("learn", "recovered"): ("images",),
}
"""Values that an event must hold."""
_WHOLE = ("iteration", "of", "done", "images", "gpu_bytes")


def _counts(event: Event) -> bool:
    """Whether the numbers that readers of learning's events reckon with are numbers."""
    if event.stage != "learn":
        return True
    values = event.values
    if not set(_COUNTED.get((event.stage, event.kind), ())) <= values.keys():
        return False
    is_progress = (event.stage, event.kind) == ("learn", "progress")
    return all(
        _is_number(value, whole=name in _WHOLE)
        for name, value in values.items()
        if is_progress or name in _WHOLE
    )


def _is_number(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if whole:
        return isinstance(value, int) and 0 <= value < 2**63
    return isinstance(value, float) or abs(value) < 2**63
