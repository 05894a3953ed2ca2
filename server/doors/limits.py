"""How much, how fast and how long: what the gRPC door takes from one organisation."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fedfree.errors import LimitError
from fedfree.settings import Settings
from server.config import AtLeastOne, NotNegative, Positive


class ServiceConfig(Settings):
    """Limits of the gRPC door."""

    max_contributions: AtLeastOne = 8
    """Taken from one organisation, uploads under way included: none can fill the disk or the queue."""
    requests_per_minute: AtLeastOne = 120
    """Taken from one organisation; as many at once after a minute's silence."""
    uploads_at_once: AtLeastOne = 32
    """Taken of all organisations; more wait for their turn."""
    upload_seconds: Positive = 900.0
    """An upload that takes longer is ended, the wait for its turn included."""
    grace_seconds: NotNegative = 30.0
    """How long uploads under way may still take once the server is told to stop."""


class RateLimit:
    """A token bucket for each organisation."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, organisation: str) -> None:
        """Count one request; raises LimitError when there were too many."""
        now = self._clock()
        left, since = self._buckets.get(organisation, (self._per_minute, now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / self._per_minute)
            raise LimitError(f"more than {self._per_minute} requests a minute: try again in {wait} s")
        self._buckets[organisation] = left - 1, now


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
