"""The run directory: everything a run needs and leaves, and how engines and apps agree on it.

::

    server.toml                   what the server is configured with
    organisations/<index>.toml    what each virtual organisation is configured with (simulations only)
    start/                        the public start of the run, where it has one; never another
    further_starts/<sha256>/      others that organisations may begin from instead, where it has several
    store/                        contributions, see server.storage.store
    checkpoint.safetensors        the state of learning, until the run is over
    meta_learner.safetensors      the result, with meta_learner.manifest.pb beside it
    recovered.safetensors         one recovered image a model and class, by contribution id
    id                            a random name, by which logs tell runs apart
    events.jsonl                  one line an event, with its time
    adaptation.json               what the organisations answered to the meta-learner
    tokens.json                   hashes of gRPC callers' tokens, see server.doors.tokens
    error.txt                     why the run failed, one line; absent otherwise
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedfree.codec import MetaLearner, encode_meta_learner, sha256, short
from fedfree.errors import ConfigError, FedFreeError
from fedfree.host.files import append_line, read_file, write_file
from fedfree.host.lock import exclusive
from fedfree.host.starts import MANIFEST as START_MANIFEST
from fedfree.host.starts import has_start, keep_start, load_start
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.events import Event, OnEvent
from server.storage.store import ACCEPTED, Store


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and what is written there."""

    path: Path

    def __post_init__(self) -> None:
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
            drawn = self.path / f".id-{uuid.uuid4().hex}"
            write_file(drawn, drawn.name.removeprefix(".id-")[:12].encode())
            with contextlib.suppress(FileExistsError):  # another process was first
                file.hardlink_to(drawn)
            drawn.unlink()
        return file.read_text()

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
    def recovered(self) -> Path:
        return self.path / "recovered.safetensors"

    def config(self) -> ServerConfig:
        """The server's configuration; raises ConfigError."""
        return ServerConfig.read(self.server_toml)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Learn here alone: raises ConfigError, naming the other, where another process learns here."""
        return exclusive(self.path)

    def store(self) -> Store:
        """The store, created where there is none."""
        return Store(self.path / "store", self.start, self.further_starts)

    @property
    def start_folder(self) -> Path:
        return self.path / "start"

    def start(self) -> LoadedStart | None:
        """The public start of the run, checked; None where organisations begin from random weights.

        Raises:
            StorageError, ContributionError: it is there and cannot be used.
        """
        return load_start(self.start_folder) if has_start(self.start_folder) else None

    def start_sha256(self) -> str:
        """The start's identity, hexadecimal; empty without one."""
        if not has_start(self.start_folder):
            return ""
        return sha256(read_file(self.start_folder / START_MANIFEST))

    @property
    def further_folder(self) -> Path:
        return self.path / "further_starts"

    def start_folders(self) -> dict[str, Path]:
        """Identity of every start of the run to its folder, that of the meta-learner first."""
        if not (own := self.start_sha256()):
            return {}
        further = sorted(each for each in self.further_folder.glob("*") if has_start(each))
        return {own: self.start_folder, **{each.name: each for each in further}}

    def further_starts(self) -> list[LoadedStart]:
        """The starts that organisations may begin from instead, checked; raises as :meth:`start`."""
        return [load_start(folder) for folder in list(self.start_folders().values())[1:]]

    def adopt_start(self, folder: Path, *further: Path) -> None:
        """Let the run begin from a start, for good; the same start again changes nothing.

        Args:
            further: starts that organisations may begin from instead. The meta-learner begins from the first.

        Raises:
            ConfigError: the run has another start, or accepted contributions that began from none, or a
                configuration of somebody's own that is not for a start.
            StorageError, ContributionError: a folder that cannot be used.
        """
        given, own = load_start(folder), self.start_sha256()
        others = [load_start(each) for each in further]
        if own:
            self._require_own([folder, *further], [given, *others])
            return
        if self.store().ids(ACCEPTED):
            raise ConfigError(
                f"{self.path} has accepted contributions that began from no public start: choose another run "
                f"directory for the start {short(given.start.sha256)}"
            )
        config = self.config()
        is_own = config != ServerConfig(collect=config.collect)
        if is_own:
            config.require_preset_for(has_start=True)
        # The first comes last: with it the run has its starts.
        shutil.rmtree(self.further_folder, ignore_errors=True)
        for each in others:
            if each.start != given.start:
                keep_start(self.further_folder / each.start.sha256, each.start, each.weights)
        keep_start(self.start_folder, given.start, given.weights)
        if not is_own:  # nobody changed more than whom to wait for
            from_start = ServerConfig.checked({"preset": "start", "collect": config.collect.plain()})
            write_file(self.server_toml, from_start.to_commented_toml().encode())

    def _require_own(self, folders: Sequence[Path], starts: Sequence[LoadedStart]) -> None:
        """Raise ConfigError unless these are starts of the run, the first of them its first."""
        own = list(self.start_folders())
        for position, (folder, each) in enumerate(zip(folders, starts, strict=True)):
            if each.start.sha256 not in (own if position else own[:1]):
                raise ConfigError(
                    f"{folder} holds the start {short(each.start.sha256)}, and {self.path} began from "
                    f"{', '.join(map(short, own))}: a run keeps its start, so choose another run directory"
                )

    def require_preset(self) -> None:
        """Raise ConfigError where the preset is not for where the models begin: ask before anybody trains."""
        self.config().require_preset_for(has_start=bool(self.start_sha256()))

    def write_meta_learner(self, meta_learner: MetaLearner) -> bytes:
        """Write the result, weights first so that a manifest never stands alone, and return the manifest."""
        manifest = encode_meta_learner(meta_learner)
        write_file(self.weights, meta_learner.weights)
        write_file(self.manifest, manifest)
        return manifest

    def write_recovered(self, gallery: Mapping[str, Tensor]) -> None:
        """Write what was recovered, uint8 [classes, channels, size, size] for each contribution id."""
        images = {identity: each.cpu().contiguous() for identity, each in gallery.items()}
        write_file(self.recovered, safetensors.torch.save(images))

    def read_recovered(self) -> dict[str, Tensor]:
        """What :meth:`write_recovered` wrote."""
        return safetensors.torch.load(read_file(self.recovered))

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
        return read_file(self.error).decode(errors="replace").strip() if self.error.is_file() else ""

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


def event_to_line(event: Event) -> str:
    """An event as one line of JSON, with the time in UTC."""
    time = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds")
    fields = {"time": time, "stage": event.stage, "kind": event.kind, "values": dict(event.values)}
    return json.dumps(fields) + "\n"


def events_from_lines(lines: Iterable[str]) -> Iterator[Event]:
    """The events of :func:`event_to_line`; what a killed process left half written is passed over."""
    for line in lines:
        try:
            fields = json.loads(line)
            time = datetime.fromisoformat(fields["time"]).timestamp()
            event = Event(fields["stage"], fields["kind"], fields["values"], time)
        except (ValueError, KeyError, TypeError):
            continue
        yield event
