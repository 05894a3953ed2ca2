"""verify -> merge -> invert <-> meta-learn -> broadcast: the server, knowing neither Flower nor gRPC."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fedfree.host.compute import choose_device, use_cpu
from server.config import ServerConfig
from server.events import Event, OnEvent, ignore
from server.learning.moves import invert, meta_learn
from server.learning.outcome import Outcome, conclude
from server.learning.pool import Pool
from server.learning.precision import parameter_dtype
from server.learning.public_images import PublicImages
from server.learning.state import State, begin
from server.learning.team import ALONE, Team
from server.storage.checkpoint import read_checkpoint, write_checkpoint
from server.storage.damage import set_damaged_aside
from server.storage.store import ACCEPTED, Store
from server.verify.verify import verify_received


def run(
    store: Store,
    config: ServerConfig,
    *,
    checkpoint: Path | None = None,
    public_images: PublicImages | None = None,
    team: Team = ALONE,
    on_event: OnEvent = ignore,
) -> Outcome:
    """Verify what the store has received, learn from the pool, and return the meta-learner to broadcast.

    The same store, configuration, device kind and thread count give the same bytes, also for a run that was
    killed and goes on from its checkpoint.

    Args:
        checkpoint: file in which the state is kept; None keeps none.
        public_images: shown to the models beside what is recovered from them.
        team: shares the work; every process returns the same outcome.

    Raises:
        FederationError: fewer accepted contributions than the quorum.
        ConfigError: a preset that is not for where the models began, or that shows nobody public images.
    """
    config.require_preset_for(has_start=store.start is not None)
    if public_images:
        config.require_use_of_public_images()
    use_cpu(config.threads)
    if team.leads:
        set_damaged_aside(store, on_event)
        verify_received(store, on_event)
    team.wait()
    pool = open_pool(store, config)
    pool.require(config.collect.quorum)
    state = begin(pool, config, public_images)
    done = _resume(state, checkpoint)
    begun = {"models": len(pool), "of": config.iterations, "done": done}
    on_event(Event("learn", "started", {**begun, **_said(public_images)}))
    known_left_out: frozenset[str] = frozenset()
    for iteration in range(done, config.iterations):
        recovered = invert(state, iteration, team)
        on_event(Event("learn", "recovered", {"images": state.images_recovered}))
        losses = meta_learn(state, recovered, iteration, team)
        known_left_out = _tell_left_out(state, known_left_out, on_event)
        values = {"iteration": iteration + 1, "of": config.iterations, **losses, **_memory_used(pool.device)}
        on_event(Event("learn", "progress", values))
        _save(state, checkpoint, iteration + 1, team)
    outcome = conclude(state)
    for identity, trust in sorted(outcome.doubted.items()):
        on_event(Event("learn", "doubted", {"contribution": identity, **trust.said()}))
    on_event(Event("learn", "finished", outcome.judged()))
    return outcome


def _said(public_images: PublicImages | None) -> dict[str, int | float | str]:
    """What was shown beside recovered images, as plain values; empty without public images."""
    if public_images is None:
        return {}
    return {"public_images": len(public_images), "public_images_sha256": public_images.sha256}


def _tell_left_out(state: State, known: frozenset[str], on_event: OnEvent) -> frozenset[str]:
    """An event for each model of which something was left out for the first time."""
    for identity in sorted(state.left_out - known):
        reason = "what came of it is not finite, so nothing was learned from that"
        on_event(Event("learn", "left out", {"contribution": identity, "reason": reason}))
    return frozenset(state.left_out)


def open_pool(store: Store, config: ServerConfig, ids: Sequence[str] | None = None) -> Pool:
    """The accepted models of a store, or those with these ids, on the device and in the format configured."""
    chosen = store.ids(ACCEPTED) if ids is None else ids
    return Pool(store, chosen, choose_device(config.device), parameter_dtype(config.precision))


def _resume(state: State, checkpoint: Path | None) -> int:
    """Put the state where it was last saved; returns the iterations done by then."""
    saved = read_checkpoint(checkpoint, state.fingerprint()) if checkpoint else None
    if saved is None:
        return 0
    state.restore(saved.tensors)
    return saved.iterations


def _save(state: State, checkpoint: Path | None, iterations: int, team: Team) -> None:
    """Keep the state every so many iterations, and after the last."""
    config = state.config
    if checkpoint and (iterations % config.checkpoint_iterations == 0 or iterations == config.iterations):
        tensors = state.tensors(team)
        if team.leads:
            write_checkpoint(checkpoint, state.fingerprint(), iterations, tensors, state.pool.ids)


def _memory_used(device: torch.device) -> dict[str, int]:
    """Most that torch held on a GPU; nothing for a CPU."""
    return {"gpu_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
