"""What learning leaves: the meta-learner that is broadcast, and one recovered image a class to look at."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import fedfree
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import MetaLearner, Provenance, encode_weights
from fedfree.errors import FederationError
from fedfree.seeding import make_generator
from server.learning.judge import Judgement, choose
from server.learning.state import State, architecture_of
from server.learning.trust import Trust

PROBE_IMAGES = 4


@dataclass(frozen=True)
class Outcome:
    """What a run of the server produced."""

    meta_learner: MetaLearner
    gallery: dict[str, Tensor]
    """Recovered images: for each contribution id one image a class, uint8 [classes, channels, size, size]."""
    images_recovered: int
    judgement: Judgement | None = None
    """How what was learned did against the mean of the models; None where there was none to judge by."""

    doubted: Mapping[str, Trust] = field(default_factory=dict)
    """By id the models that did not count in full, with the evidence."""

    def judged(self) -> dict[str, float | str]:
        """The judgement as plain words and percentages; empty without one."""
        if self.judgement is None:
            return {}
        return {
            "broadcast": "learned" if self.judgement.keeps_learned else "average",
            "learned_on_synthetic_episodes": self.judgement.learned.mean,
            "average_on_synthetic_episodes": self.judgement.mean.mean,
        }


@torch.no_grad()
def require_finite(network: Classifier, input: InputSpec) -> None:
    """Let nothing be published that is not finite, or makes of noise what is not; raises FederationError."""
    spoiled = [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    size = (PROBE_IMAGES, input.channels, input.height, input.width)
    noise = torch.rand(size, generator=make_generator(0, "outcome")).to(next(network.parameters()))
    if not spoiled and not network.features(input.normalise(noise)).isfinite().all():
        spoiled = ["its features on noise"]
    if spoiled:
        raise FederationError(
            f"what was learned is not finite ({spoiled[0]}), so nothing is published: learn anew in another "
            "run directory, with smaller learning rates and without the models that the events call left out"
        )


def conclude(state: State) -> Outcome:
    """The meta-learner with its recipe and where it comes from, as hashes, and what the memory shows."""
    if state.left_out and not len(state.memory):
        raise FederationError(
            f"no model gave back anything finite ({len(state.left_out)} left out), so nothing was learned: "
            "look at what was contributed, and learn from other models"
        )
    chosen, judgement = choose(state)
    require_finite(chosen, state.input)
    public = state.public_images
    meta_learner = MetaLearner(
        architecture=architecture_of(state.pool, state.config),
        num_classes=state.num_classes,
        input=state.input,
        recipe=state.recipe,
        provenance=Provenance(
            contributions=tuple(state.pool.ids),
            config_sha256=state.config.sha256(),
            seed=state.config.seed,
            software=f"fedfree {fedfree.__version__}",
            start=state.pool.start.sha256 if state.pool.start else "",
            public_images=len(public) if public else 0,
            public_images_sha256=public.sha256 if public else "",
        ),
        weights=encode_weights(copy.deepcopy(chosen).float()),
    )
    gallery = {state.pool.ids[number]: images for number, images in state.memory.gallery().items()}
    return Outcome(meta_learner, gallery, state.images_recovered, judgement, state.doubted())
