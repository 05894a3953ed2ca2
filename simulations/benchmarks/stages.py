"""How long each stage of a meta-iteration takes, and how far that is from what the memory allows.

Small convolutions are bound by memory, not by arithmetic: the roofline here is the time in which the bytes
that the operations of a stage read and write, known from their shapes, go through the memory once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedfree.host.compute import use_cpu
from server.config import ServerConfig
from server.learning.meta_learn import can_replay
from server.learning.moves import ask_teachers, distil, invert, replay
from server.learning.pool import Pool
from server.learning.state import State, begin
from simulations.benchmarks.timing import alternate, bandwidth, bytes_moved


@dataclass(frozen=True)
class Stage:
    """One stage of a meta-iteration."""

    name: str
    images: int
    """Recovered, looked at or learned from, each as often as it is."""
    seconds: float
    bytes: int
    """Read and written by its operations."""
    bandwidth: float
    """Bytes a second that a plain copy reads and writes here."""

    @property
    def images_a_second(self) -> float:
        return self.images / self.seconds

    @property
    def share_of_roofline(self) -> float:
        """Of the bytes a second of a plain copy; above one where caches spare the memory."""
        return self.bytes / self.seconds / self.bandwidth


def stages(pool: Pool, server: ServerConfig, *, repeats: int) -> list[Stage]:
    """Time the stages of one meta-iteration in turn, on a state that is past its warm-up."""
    use_cpu(server.threads)
    state = begin(pool, server)
    first = server.warmup_iterations
    recovered = invert(state, first)
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "invert": (sum(map(len, (task.images for task in recovered))), partial(invert, state, first))
    }
    learn = server.learn
    if learn.relational_tasks:
        asked = works["invert"][0] + learn.compositions
        works["ask teachers"] = asked, partial(ask_teachers, state, recovered, iteration=first)
        works["ask teachers"][1]()
    if learn.relational_tasks or learn.own_tasks:
        works["distil"] = _distilled(state, len(recovered)), partial(distil, state, recovered)
    if learn.replay_episodes and can_replay(state.memory, learn):
        images = learn.replay_episodes * learn.replay_ways * (learn.replay_shots + learn.replay_queries)
        works["replay"] = images, partial(replay, state)
    times = alternate([work for _, work in works.values()], pool.device, repeats=repeats)
    speed = bandwidth(pool.device)
    return [
        Stage(name, images, took, bytes_moved(work), speed)
        for (name, (images, work)), took in zip(works.items(), times, strict=True)
    ]


def _distilled(state: State, own_tasks: int) -> int:
    """Images of all tasks of an iteration."""
    learn = state.config.learn
    own = own_tasks * state.config.invert.images_per_model if learn.own_tasks else 0
    return own + learn.relational_tasks * learn.batch_size
