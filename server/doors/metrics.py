"""Prometheus metrics of a run, read from its directory when they are asked for.

So they are the same whichever process serves them: the one that learns, the gRPC door, or the
supervisor of Flower's processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from server.doors.status import LearningStatus, RunStatus
from server.storage.run_directory import RunDirectory


class RunCollector(Collector):
    """Everything ``RunStatus`` tells, as gauges."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        """Gauges of what is known now; what is not known yet is left out."""
        status = RunStatus.read(self._run)
        contributions = GaugeMetricFamily(
            "fedfree_contributions", "Contributions by state; received ones wait.", labels=["state"]
        )
        for state, count in status.contributions.items():
            contributions.add_metric([state], count)
        yield contributions
        yield GaugeMetricFamily(
            "fedfree_meta_learner_published",
            "1 once there is one to fetch.",
            bool(status.meta_learner_sha256),
        )
        yield GaugeMetricFamily("fedfree_run_failed", "1 where the run failed.", bool(status.failure))
        if status.learning is not None:
            yield from _learning(status.learning)


def _learning(learning: LearningStatus) -> Iterator[Metric]:
    losses = GaugeMetricFamily("fedfree_loss", "Of the latest iteration.", labels=["name"])
    for loss, amount in learning.losses.items():
        losses.add_metric([loss], amount)
    yield losses
    gauges: dict[str, tuple[str, float | None]] = {
        "fedfree_iteration": ("Iterations done.", learning.iteration),
        "fedfree_iterations": ("Iterations in all.", learning.of),
        "fedfree_recovered_images": ("Images recovered from models so far.", learning.images),
        "fedfree_recovered_images_per_second": ("Over the whole loop.", learning.images_a_second),
        "fedfree_remaining_seconds": ("Until learning ends, at the pace so far.", learning.seconds_left),
        "fedfree_gpu_memory_bytes": ("Most that torch held on the GPU.", learning.gpu_bytes),
    }
    for name, (documentation, value) in gauges.items():
        if value is not None:
            yield GaugeMetricFamily(name, documentation, value)


@contextmanager
def served(run: RunDirectory, listen: str | None) -> Iterator[Address | None]:
    """Serve a run's metrics over HTTP at HOST:PORT while the block runs; nowhere with ``listen`` None.

    Port 0 takes a free one, which is handed out.

    Raises:
        ConfigError: the address cannot be had.
    """
    if listen is None:
        yield None
        return
    address = Address.parse(listen)
    registry = CollectorRegistry()
    registry.register(RunCollector(run))
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise ConfigError(f"cannot serve metrics on {listen}: {error.strerror}") from error
    try:
        yield Address(address.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
