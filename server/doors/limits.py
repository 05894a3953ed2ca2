"""How much, how fast and how long: what the gRPC door takes of an address, an organisation, and everyone."""

import asyncio
import ipaddress
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from fedfree.errors import LimitError
from fedfree.settings import Settings
from server.config import AtLeastOne, NotNegative, Positive

MAX_BUCKETS = 10_000
"""Addresses remembered at once: more than this, and those heard of longest ago are forgotten."""
_IPV6_NETWORK = 64
"""Leading bits that one household or machine shares; the others it chooses itself."""


class ServiceConfig(Settings):
    """Limits of the gRPC door."""

    max_contributions: AtLeastOne = 8
    """Taken from one organisation, uploads under way included: none can fill the disk or the queue."""
    requests_per_minute: AtLeastOne = 120
    """Taken from one organisation; as many at once after a minute's silence."""
    wrong_tokens_per_minute: AtLeastOne = 30
    """Looked at from one address; a token that was right there lately passes all the same."""
    uploads_at_once: AtLeastOne = 32
    """Taken of all organisations; more wait for their turn."""
    uploads_of_one: AtLeastOne = 4
    """Of these turns, held by one organisation at most."""
    calls_of_one: AtLeastOne = 16
    """Open at once from one organisation, those that wait for a turn included."""
    visitors: AtLeastOne = 64
    """Health and reflection calls open at once, of all addresses; they need no token."""
    visitors_of_one: AtLeastOne = 8
    """Of these, from one address."""
    visit_seconds: Positive = 600.0
    """After so long a health or reflection stream is ended; whoever watches may call again."""
    request_seconds: Positive = 10.0
    """Within which a call's request, or an upload's header, must arrive."""
    progress_seconds: Positive = 60.0
    """Within which each further piece of an upload must arrive."""
    upload_seconds: Positive = 900.0
    """An upload that takes longer is ended, the wait for its turn included."""
    grace_seconds: NotNegative = 30.0
    """How long uploads under way may still take once the server is told to stop."""


class RateLimit:
    """A token bucket for each caller, of whom only those are remembered whose bucket is not full."""

    def __init__(
        self, per_minute: int, what: str = "requests", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._what = what
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count one; raises LimitError when there were too many."""
        left = self._left(caller)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / self._per_minute)
            raise LimitError(f"more than {self._per_minute} {self._what} a minute: try again in {wait} s")
        self._buckets.pop(caller, None)  # so that the longest silent stands first
        self._buckets[caller] = left - 1, self._clock()
        if len(self._buckets) > MAX_BUCKETS:
            self._forget()

    def is_empty(self, caller: str) -> bool:
        """Whether the next one would be refused."""
        return self._left(caller) < 1

    def _left(self, caller: str) -> float:
        now = self._clock()
        left, since = self._buckets.get(caller, (self._per_minute, now))
        return min(self._per_minute, left + max(0.0, now - since) * self._per_minute / 60)

    def _forget(self) -> None:
        full = [each for each in self._buckets if self._left(each) >= self._per_minute]
        for caller in full or [next(iter(self._buckets))]:
            del self._buckets[caller]


class Quota:
    """How many contributions each organisation has handed over or is handing over."""

    def __init__(self, most: int, handed_over: Mapping[str, int]) -> None:
        self._most = most
        self._counts = Counter(handed_over)

    @contextmanager
    def one_more(self, organisation: str) -> Iterator[None]:
        """Room for a contribution, which is given back when it fails; raises LimitError."""
        if self._counts[organisation] >= self._most:
            raise LimitError(
                f"{organisation} has handed over {self._counts[organisation]} contributions, "
                f"and this federation takes {self._most} from each organisation"
            )
        self._counts[organisation] += 1
        try:
            yield
        except BaseException:
            self._counts[organisation] -= 1
            raise


class Open:
    """How many calls are open, of each caller and in all."""

    def __init__(self, of_one: int, of_all: int | None = None) -> None:
        self._of_one = of_one
        self._of_all = of_all
        self._counts: Counter[str] = Counter()

    @contextmanager
    def one_more(self, caller: str) -> Iterator[None]:
        """One more call while the block runs; raises LimitError when there are too many."""
        if self._counts[caller] >= self._of_one:
            raise LimitError(f"{self._of_one} calls of yours are open: end one before you begin another")
        if self._of_all is not None and self._counts.total() >= self._of_all:
            raise LimitError("too many calls are open: try again later")
        self._counts[caller] += 1
        try:
            yield
        finally:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]


class Turns:
    """So many at once, of which one organisation holds its share at most; the others wait."""

    def __init__(self, at_once: int, of_one: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._own: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(of_one))

    @asynccontextmanager
    async def turn(self, organisation: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs."""
        async with self._own[organisation], self._all:
            yield


def address_of(peer: str) -> str:
    """Who is behind a gRPC peer such as ``ipv4:192.0.2.7:51234``: an address, of IPv6 the network."""
    host = peer.partition(":")[2].rpartition(":")[0].removeprefix("[").removesuffix("]")
    host = host.replace("%5B", "").replace("%5D", "").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer.partition(":")[0]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
    return str(address)
