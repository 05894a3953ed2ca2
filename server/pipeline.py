"""verify -> invert <-> meta-learn -> broadcast: what the server does, knowing neither Flower nor gRPC."""

from dataclasses import dataclass

import torch
from torch import Tensor

import fedfree
from fedfree.codec import MetaLearner, Provenance, encode_weights
from fedfree.compute import use_cpu
from server.config import ServerConfig
from server.events import Event, OnEvent, ignore
from server.learner import Learner
from server.pool import Pool
from server.store import Store
from server.verify import verify_received


@dataclass(frozen=True)
class Outcome:
    """What a run of the server produced."""

    meta_learner: MetaLearner
    gallery: dict[str, Tensor]
    """Recovered images: for each contribution id one image a class, uint8 [classes, channels, size, size]."""
    images_recovered: int


def run(store: Store, config: ServerConfig, *, on_event: OnEvent = ignore) -> Outcome:
    """Verify what the store has received, learn from the pool, and return the meta-learner to broadcast.

    The same store, configuration, device kind and thread count give the same bytes.

    Raises:
        FederationError: fewer accepted contributions than the quorum.
    """
    use_cpu(config.threads)
    verify_received(store, on_event)
    pool = Pool(store, choose_device(config.device))
    pool.require(config.collect.quorum)
    learner = Learner(pool, config)
    on_event(Event("learn", "started", {"models": len(pool), "of": config.iterations}))
    for iteration in range(config.iterations):
        recovered = learner.invert(iteration)
        on_event(Event("learn", "recovered", {"images": learner.images_recovered}))
        losses = learner.meta_learn(recovered, iteration)
        on_event(Event("learn", "progress", {"iteration": iteration + 1, "of": config.iterations, **losses}))
    on_event(Event("learn", "finished"))
    return Outcome(publish(learner, pool, config), learner.memory.gallery(), learner.images_recovered)


def publish(learner: Learner, pool: Pool, config: ServerConfig) -> MetaLearner:
    """The meta-learner with its recipe and where it comes from, as hashes."""
    return MetaLearner(
        architecture=config.architecture,
        num_classes=learner.num_classes,
        input=learner.input,
        recipe=config.recipe,
        provenance=Provenance(
            contributions=tuple(pool.ids),
            config_sha256=config.sha256(),
            seed=config.seed,
            software=f"fedfree {fedfree.__version__}",
        ),
        weights=encode_weights(learner.student),
    )


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
