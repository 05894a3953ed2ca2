"""The coordinator's gRPC door, from an organisation's side: contribute, ask, fetch."""

import functools
import glob
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from client.doors.trust import Trust
from client.limits import LimitsConfig, check_meta_learner, check_start
from fedfree.codec import (
    Contribution,
    MetaLearner,
    check_manifest_size,
    check_weights_size,
    contribution_id,
    decode_meta_learner,
    describe_meta_learner,
    hash_from_wire,
    sha256,
    short,
)
from fedfree.errors import (
    ConfigError,
    ContributionError,
    FederationError,
    FedFreeError,
    StartError,
    printable,
)
from fedfree.grpc_status import MAX_DETAIL_CHARACTERS, error_of
from fedfree.host.channel import AUTHORIZATION, BEARER, CLIENT_OPTIONS, RELEASE, Address, chunks
from fedfree.host.files import move_into_place, named, open_stream, read_file, sync, write_together
from fedfree.host.proxy import Proxy
from fedfree.host.starts import MANIFEST, WEIGHTS, has_start, read_start
from fedfree.host.tls import read_authority, read_certificate
from fedfree.release import this_release
from fedfree.signing import What, read_signature
from fedfree.start import (
    Start,
    check_licence,
    decode_start,
    describe_start,
    find_start,
    require_same_start,
)
from fedfree.v1 import service_pb2 as schema
from fedfree.v1.service_pb2_grpc import FedFREEStub

log = logging.getLogger(__name__)

PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Between attempts at a call that failed because the server could not be reached."""
ANSWER_SECONDS = 30.0
"""How long a short answer may take."""
TRANSFER_SECONDS = 3600.0
"""How long a model may be on its way."""

_PLACES = {
    schema.ContributionState.PLACE_UNSPECIFIED: "unknown",
    schema.ContributionState.PLACE_RECEIVED: "received",
    schema.ContributionState.PLACE_ACCEPTED: "accepted",
    schema.ContributionState.PLACE_QUARANTINED: "quarantined",
}
# A server that stops cancels what it cannot end.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Gone wrong before the server's certificate was seen.
_NO_CONNECTION = "failed to connect.*(refused|closed|reset|HTTP proxy|unreachable|timeout)|errors resolving"
_NOBODY = "failed to connect.*(refused|unreachable|timeout)|errors resolving"
_DEFAULT_LIMITS = LimitsConfig()
_HEX_DIGIT = "[0-9a-f]"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ContributionState:
    """What became of a contribution."""

    identity: str
    place: str
    """``received``, ``accepted``, ``quarantined``, or ``unknown``."""
    reason: str
    """Why it is in quarantine; empty elsewhere."""


@dataclass(frozen=True)
class RunState:
    """How far the coordinator's run is."""

    received: int
    accepted: int
    quarantined: int
    iteration: int
    iterations: int
    """0 before learning starts."""
    meta_learner_sha256: str
    """Of what can be fetched; empty where there is nothing yet."""
    start_sha256: str
    """Of the start that training begins from; empty for random weights."""
    further_starts: tuple[str, ...] = ()
    """Of those that it may begin from instead."""

    @property
    def starts(self) -> tuple[str, ...]:
        """Of all of them; none for random weights."""
        return (self.start_sha256, *self.further_starts) if self.start_sha256 else ()


def credentials(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> Any:
    """TLS towards a server whose certificate ``ca`` signed (default: the public authorities).

    A certificate of one's own is shown to servers that ask for one. Raises ConfigError.
    """
    pair = None if certificate is None or key is None else read_certificate(certificate, key)
    return grpc.ssl_channel_credentials(
        root_certificates=None if ca is None else read_authority(ca),
        certificate_chain=pair and pair[0],
        private_key=pair and pair[1],
    )


class Remote:
    """Calls to a coordinator, made again with growing pauses where it cannot be reached."""

    def __init__(
        self,
        channel: Any,
        token: str,
        *,
        trust: Trust,
        blame: Callable[[str], str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take a channel to the coordinator.

        Args:
            trust: what is believed of the coordinator that hands something out.
            blame: tells why there is no connection, where a proxy is on the way.
        """
        self._stub = FedFREEStub(channel)
        self._metadata = ((AUTHORIZATION, BEARER + token), (RELEASE, this_release()))
        self._trust = trust
        self._blame = blame
        self._sleep = sleep

    def contribute(self, manifest: bytes, weights: bytes) -> ContributionState:
        """Hand over a contribution; one that is already there is not sent again.

        Raises:
            ContributionError: it was refused at the door.
            AccessError, FederationError: as every call here, when it cannot be made.
        """

        def call() -> schema.ContributeResponse:
            answer: schema.ContributeResponse = self._stub.Contribute(
                _upload(manifest, weights), timeout=TRANSFER_SECONDS, metadata=self._metadata
            )
            return answer

        return _state_from_wire(self._insist(call).contribution, contribution_id(manifest))

    def require_same_start(self, contribution: Contribution) -> None:
        """Refuse, before anything is sent, what the coordinator would; raises StartError."""
        require_same_start(contribution.start, self.run().starts)

    def contribution(self, manifest: bytes) -> ContributionState:
        """What became of a contribution."""
        identity = contribution_id(manifest)
        return _state_from_wire(self._status(identity).contribution, identity)

    def run(self) -> RunState:
        """How far the coordinator's run is."""
        answer = self._status("")
        return RunState(
            received=answer.received,
            accepted=answer.accepted,
            quarantined=answer.quarantined,
            iteration=answer.progress.iteration,
            iterations=answer.progress.of,
            meta_learner_sha256=_hash_or_none(answer.meta_learner_sha256),
            start_sha256=_hash_or_none(answer.start_sha256),
            further_starts=tuple(map(hash_from_wire, answer.further_start_sha256)),
        )

    def fetch(
        self,
        weights: Path,
        manifest: Path,
        signature: Path | None = None,
        *,
        limits: LimitsConfig = _DEFAULT_LIMITS,
    ) -> MetaLearner:
        """Bring the meta-learner into two files, going on where an earlier attempt ended.

        Args:
            signature: where the signature over the manifest goes, if it is to be kept.
            limits: what it may ask of this machine.

        Raises:
            NotReadyError: there is none yet.
            SignatureError: it is not signed by the key that is known, or is older; nothing was fetched.
            TooMuchError: its input or its recipe asks for more than the limits allow; likewise.
            ContributionError: what came breaks the contract; nothing of it is kept.
            StorageError: the disk is full, or the folder cannot be written; what came is gone on with later.
        """
        small = {"manifest": manifest} | ({"signature": signature} if signature else {})

        def look(manifest: bytes) -> None:
            check_meta_learner(describe_meta_learner(manifest), limits)

        method = self._stub.FetchMetaLearner
        return self._fetch(method, "meta-learner", weights, small, decode_meta_learner, look)

    def fetch_start(
        self,
        folder: Path,
        wanted: str = "",
        *,
        accepted: Sequence[str] = (),
        limits: LimitsConfig = _DEFAULT_LIMITS,
    ) -> Start:
        """Bring a start into a folder, going on where an earlier attempt ended.

        A folder that holds a start is compared with the coordinator's, and left as it is.

        Args:
            wanted: first digits of the identity of one of several; by default the first is brought.
            accepted: licences besides the usual ones, see :func:`fedfree.start.check_licence`.
            limits: what it may ask of this machine.

        Raises:
            NotReadyError: the federation has no start.
            StartError: the folder holds another start, the licence is not accepted, or none or several begin
                with these digits; nothing was fetched.
            SignatureError: it is not signed by the key that is known; likewise.
            TooMuchError: its images are larger than the limits allow; likewise.
            ConfigError: the folder holds weights of something else.
            ContributionError, StorageError: as :meth:`fetch`.
        """
        start = find_start(self.run().starts, wanted) if wanted else ""
        if has_start(folder):
            own = read_start(folder)[0]
            _require_it(own.sha256, [start] if start else self.run().starts, folder)
            check_start(own, limits)
            return own
        if (folder / WEIGHTS).exists():
            raise ConfigError(f"{folder} holds weights and no start: choose another folder")

        def look(manifest: bytes) -> None:
            if start not in ("", sha256(manifest)):
                raise ContributionError(
                    f"the server was asked for the start {short(start)}, and sends "
                    f"{short(sha256(manifest))}: ask the coordinator"
                )
            described = describe_start(manifest)
            check_licence(described.licence, accepted=accepted)
            check_start(described, limits)

        target, small = folder / WEIGHTS, {"manifest": folder / MANIFEST}
        return self._fetch(self._stub.FetchStart, "start", target, small, decode_start, look, start=start)

    def _fetch(
        self,
        method: Any,
        what: What,
        weights: Path,
        small: Mapping[str, Path],
        decode: Callable[[bytes, bytes], _Result],
        look: Callable[[bytes], None],
        *,
        start: str = "",
    ) -> _Result:
        """Bring what a method hands out into files; ``look`` may refuse it by its manifest alone.

        Args:
            small: which fields of the header are written, and where.
        """

        def check(header: schema.FetchHeader) -> None:
            self._trust.check(what, header.manifest, header.signature)
            look(header.manifest)

        with named(f"cannot write {weights}"):
            partial, header = self._insist(lambda: self._download(method, weights, check, start))
            try:
                fetched = decode(header.manifest, read_file(partial))
            except ContributionError:
                partial.unlink()
                raise
            # The weights come last: without them nobody takes the manifest for the whole.
            sync(partial)
            write_together({path: getattr(header, field) for field, path in small.items()})
            move_into_place(partial, weights)
        self._trust.keep(what, read_signature(what, header.manifest, header.signature))
        return fetched

    def _status(self, identity: str) -> schema.GetStatusResponse:
        request = schema.GetStatusRequest(contribution_sha256=bytes.fromhex(identity))

        def call() -> schema.GetStatusResponse:
            answer: schema.GetStatusResponse = self._stub.GetStatus(
                request, timeout=ANSWER_SECONDS, metadata=self._metadata
            )
            return answer

        return self._insist(call)

    def _download(
        self, method: Any, target: Path, check: Callable[[schema.FetchHeader], None], start: str
    ) -> tuple[Path, schema.FetchHeader]:
        """Bring the weights into a file beside ``target`` that is named by their hash; also the header."""
        target.parent.mkdir(parents=True, exist_ok=True)
        begun = _begun(target)
        request = schema.FetchRequest(
            offset=begun.stat().st_size if begun else 0,
            weights_sha256=bytes.fromhex(begun.suffixes[-2][1:]) if begun else b"",
            start_sha256=bytes.fromhex(start),
        )
        answers = method(request, timeout=TRANSFER_SECONDS, metadata=self._metadata)
        header = _header(answers, request)
        try:
            check(header)
        except ContributionError:
            answers.cancel()
            raise
        partial = target.with_name(f"{target.name}.{header.weights_sha256.hex()}.partial")
        if begun and begun != partial:
            begun.unlink()
        with open_stream(partial, begun=True) as file:
            file.truncate(header.offset)
            for answer in answers:
                if file.tell() + len(answer.chunk) > header.weights_bytes:
                    raise ContributionError(f"more came than the {header.weights_bytes} bytes announced")
                file.write(answer.chunk)
        return partial, header

    def _insist(self, call: Callable[[], _Result]) -> _Result:
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return call()
            except grpc.RpcError as failure:
                error, pause = self._error(failure), next(pauses, None)
                is_passing = failure.code() in _PASSING and isinstance(error, FederationError)
                if pause is None or not is_passing:
                    raise error from failure
            log.warning("%s; trying again in %.0f s", error, pause)
            self._sleep(pause)

    def _error(self, failure: grpc.RpcError) -> FedFreeError:
        details = printable(failure.details() or "", MAX_DETAIL_CHARACTERS)
        if self._blame and re.search(_NO_CONNECTION, details):
            return FederationError(self._blame(details))
        return _unreached(details) if re.search(_NOBODY, details) else error_of(failure)


@contextmanager
def connect(address: Address, tls: Any | None, token: str, trust: Trust | None = None) -> Iterator[Remote]:
    """A coordinator's door; without ``tls`` on this machine only. Raises ConfigError.

    Args:
        trust: what is believed of it (default: the key that this user saw there first).
    """
    if tls is None:
        address.require_loopback()
    proxy = Proxy.towards(address)
    # What gRPC reads in the environment by itself would take it through a proxy to this machine.
    way = ("grpc.http_proxy", proxy.url) if proxy else ("grpc.enable_http_proxy", 0)
    options = (*CLIENT_OPTIONS, way)
    if tls is None:
        channel = grpc.insecure_channel(str(address), options=options)
    else:
        channel = grpc.secure_channel(str(address), tls, options=options)
    blame = functools.partial(proxy.blame, address) if proxy else None
    with channel:
        yield Remote(channel, token, trust=trust or Trust.at(str(address)), blame=blame)


def _unreached(details: str) -> FederationError:
    return FederationError(
        f"the coordinator cannot be reached: {details}: see that it is up and that this is its address"
    )


def _upload(manifest: bytes, weights: bytes) -> Iterator[schema.ContributeRequest]:
    header = schema.ContributionHeader(manifest=manifest, weights_bytes=len(weights))
    yield schema.ContributeRequest(header=header)
    for chunk in chunks(weights):
        yield schema.ContributeRequest(chunk=chunk)


def _state_from_wire(message: schema.ContributionState, asked: str) -> ContributionState:
    """What the server says of the contribution that it was asked about; raises ContributionError."""
    identity = message.contribution_sha256.hex()
    if identity != asked or message.place not in _PLACES:
        raise ContributionError(
            f"the server was asked about the contribution {short(asked)}, and answers about "
            f"{short(identity) or 'none'}, state {message.place}: install the same release of fedfree "
            "on both sides, or ask the coordinator"
        )
    return ContributionState(identity, _PLACES[message.place], printable(message.reason))


def _hash_or_none(value: bytes) -> str:
    return hash_from_wire(value) if value else ""


def _require_it(own: str, starts: Sequence[str], folder: Path) -> None:
    if own not in starts:
        named = " or ".join(map(short, starts))
        theirs = f"the federation's is {named}" if starts else "the federation has none"
        raise StartError(f"{folder} holds the start {short(own)}, and {theirs}: choose another folder")


def _begun(target: Path) -> Path | None:
    """What an earlier attempt left of the file to come."""
    pattern = f"{glob.escape(target.name)}.{_HEX_DIGIT * 64}.partial"
    return next(iter(sorted(target.parent.glob(pattern))), None)


def _header(answers: Iterator[schema.FetchResponse], request: schema.FetchRequest) -> schema.FetchHeader:
    """What the server sends first, its numbers held against what was asked; raises ContributionError."""
    first = next(answers, None)
    if first is None or first.WhichOneof("part") != "header":
        raise ContributionError("the server's answer does not begin with a header")
    header: schema.FetchHeader = first.header
    check_manifest_size(len(header.manifest))
    check_weights_size(header.weights_bytes)
    hash_from_wire(header.weights_sha256)
    goes_on = header.weights_sha256 == request.weights_sha256 and header.offset == request.offset
    if header.offset > header.weights_bytes or not (goes_on or header.offset == 0):
        raise ContributionError(
            f"the server sends from byte {header.offset} of {header.weights_bytes} on, where "
            f"{request.offset} were asked for: ask the coordinator"
        )
    return header
