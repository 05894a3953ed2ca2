"""verify -> invert <-> meta-learn -> broadcast: what the server does, knowing neither Flower nor gRPC."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fedfree
from fedfree.codec import MetaLearner, Provenance, encode_weights
from fedfree.host.compute import choose_device, use_cpu
from server.config import ServerConfig
from server.events import Event, OnEvent, ignore
from server.learning.learner import Learner
from server.learning.pool import Pool
from server.learning.precision import parameter_dtype
from server.learning.team import ALONE, Team
from server.storage.checkpoint import Checkpoint
from server.storage.store import Store
from server.verify.verify import verify_received


@dataclass(frozen=True)
class Outcome:
    """What a run of the server produced."""

    meta_learner: MetaLearner
    gallery: dict[str, Tensor]
    """Recovered images: for each contribution id one image a class, uint8 [classes, channels, size, size]."""
    images_recovered: int


def run(
    store: Store,
    config: ServerConfig,
    *,
    checkpoint: Path | None = None,
    team: Team = ALONE,
    on_event: OnEvent = ignore,
) -> Outcome:
    """Verify what the store has received, learn from the pool, and return the meta-learner to broadcast.

    The same store, configuration, device kind and thread count give the same bytes, also for a run that was
    killed and goes on from its checkpoint.

    Args:
        checkpoint: file in which the state is kept; None keeps none.
        team: shares the work; every process returns the same outcome.

    Raises:
        FederationError: fewer accepted contributions than the quorum.
    """
    use_cpu(config.threads)
    if team.leads:
        verify_received(store, on_event)
    team.wait()
    pool = Pool(store, choose_device(config.device), parameter_dtype(config.precision))
    pool.require(config.collect.quorum)
    learner = Learner(pool, config, team)
    saved = Checkpoint(checkpoint, learner)
    done = saved.restore()
    on_event(Event("learn", "started", {"models": len(pool), "of": config.iterations, "done": done}))
    for iteration in range(done, config.iterations):
        recovered = learner.invert(iteration)
        on_event(Event("learn", "recovered", {"images": learner.images_recovered}))
        losses = learner.meta_learn(recovered, iteration)
        values = {"iteration": iteration + 1, "of": config.iterations, **losses, **memory_used(pool.device)}
        on_event(Event("learn", "progress", values))
        if (iteration + 1) % config.checkpoint_iterations == 0 or iteration + 1 == config.iterations:
            saved.save(iteration + 1)
    on_event(Event("learn", "finished"))
    return Outcome(publish(learner, pool, config), learner.gallery(), learner.images_recovered)


def publish(learner: Learner, pool: Pool, config: ServerConfig) -> MetaLearner:
    """The meta-learner with its recipe and where it comes from, as hashes."""
    return MetaLearner(
        architecture=config.architecture,
        num_classes=learner.num_classes,
        input=learner.input,
        recipe=learner.recipe,
        provenance=Provenance(
            contributions=tuple(pool.ids),
            config_sha256=config.sha256(),
            seed=config.seed,
            software=f"fedfree {fedfree.__version__}",
        ),
        weights=encode_weights(copy.deepcopy(learner.student).float()),
    )


def memory_used(device: torch.device) -> dict[str, int]:
    """Most that torch held on a GPU; nothing for a CPU."""
    return {"gpu_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
