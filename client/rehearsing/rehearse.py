"""The rehearsal: what a contribution would give away, measured before there is one.

The same code and configuration train several models, each on a random half of the organisation's
images, some of which carry a wrong label: canaries, which a model can only know by heart, and so show
the worst case that the average over natural images hides (Aerni et al. 2024). Every model is
attacked once, with the others as shadows. The model that is contributed is none of them.

Under differential privacy every shadow is trained by the same DP-SGD, with a plan for its own half of the
images. None of this goes into the ledger: shadows are never released. No ε covers what was found out with
them, so publishing that would be a release of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.config import ClientConfig, PrivacyConfig, TrainingConfig
from client.data.image_set import ImageSet, to_input
from client.data.loading import load_configured
from client.rehearsing.attacks import (
    ATTACKS,
    Attack,
    EpsilonBound,
    Exposure,
    Floats,
    Mask,
    audit_epsilon,
    exposure,
    lira_online,
    membership_scores,
)
from client.training.cache import (
    MANIFEST,
    begun_from,
    check_writable,
    read_cached,
    training_key,
    without_paths,
    write_cached,
)
from client.training.fit import Fitted, Untrained, fit, initialise
from client.training.observer import Observer, ignore
from client.training.privacy import plan as plan_run
from client.training.privacy import train_privately
from fedfree.accounting import highest_true_positive_rate
from fedfree.adaptation import FEATURE_BATCH
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import Contribution, encode_weights, raise_variances, sha256
from fedfree.errors import DataError, ExtensionError
from fedfree.extension import described, extending
from fedfree.host.code import code_sha256
from fedfree.host.compute import use_cpu
from fedfree.seeding import derive_seed, make_generator
from fedfree.statement import PrivacyStatement

NATURAL, CANARIES = "natural", "canaries"
MIN_SHADOWS = 4
CANARY_FRACTION = 0.1
MIN_CANARIES = 10


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images each model of a rehearsal is trained on."""

    images: ImageSet
    """With the canaries' labels already wrong."""
    canaries: Tensor
    """[images], bool."""
    members: Tensor
    """[models, images], bool: independent fair coins."""

    def training_images(self, model: int) -> ImageSet:
        """What a model is trained on."""
        return self.images.subset(self.members[model])

    def unseen_images(self, model: int) -> ImageSet:
        """The others, of the same classes."""
        return self.images.subset(~self.members[model])


def make_plan(images: ImageSet, *, shadows: int, canary_fraction: float = CANARY_FRACTION, seed: int) -> Plan:
    """Mislabel some images, and draw each model's half.

    Raises:
        DataError: too few images or shadows to measure anything.
    """
    if shadows < MIN_SHADOWS:
        raise DataError(f"a rehearsal needs at least {MIN_SHADOWS} shadows, got {shadows}; 16 is usual")
    generator = make_generator(seed, "rehearsal", images.fingerprint())
    count = round(canary_fraction * len(images))
    if not MIN_CANARIES <= count <= len(images) - MIN_CANARIES:
        raise DataError(
            f"{canary_fraction:g} of {len(images)} images are {count} canaries; fewer than {MIN_CANARIES} "
            "canaries, or as few other images, measure nothing: use more images"
        )
    canaries = torch.zeros(len(images), dtype=torch.bool)
    canaries[torch.randperm(len(images), generator=generator)[:count]] = True
    offsets = torch.randint(1, images.num_classes, (len(images),), generator=generator)
    labels = torch.where(canaries, (images.labels + offsets) % images.num_classes, images.labels)
    members = torch.rand(shadows, len(images), generator=generator) < 0.5
    return Plan(ImageSet(images.images, labels, images.class_names), canaries, members)


@dataclass(frozen=True)
class Trainer:
    """How an organisation trains, with or without differential privacy."""

    train: Callable[[ImageSet, int], Contribution]
    """From images and a seed to the model as it would be contributed, its outputs in the labels' order."""
    config_hash: str
    """Of everything that decides what ``train`` does."""


def trainer_of(config: TrainingConfig, privacy: PrivacyConfig | None = None) -> Trainer:
    """Trains as ``pretrain`` does, but on every image (without privacy, on all but one a class).

    The ledger is not asked and holds nothing of it, and the statement is ``none`` even under DP-SGD: these
    models are for attacking at home, and are never released.
    """
    config = config.model_copy(update={"held_out_fraction": 1e-9})
    privacy = privacy or PrivacyConfig()

    def train(images: ImageSet, seed: int) -> Contribution:
        if privacy.is_dp:
            trained: Fitted | Untrained = _train_unreleased(images, config, privacy, seed)
        else:
            trained = fit(images, config, seed=seed)
        raise_variances(trained.network)  # public weights have dead filters
        return Contribution(
            architecture=config.architecture,
            num_classes=images.num_classes,
            input=trained.input,
            privacy=PrivacyStatement(),
            weights=encode_weights(trained.network),
        )

    parts = (
        without_paths(config).sha256(),
        privacy.training_sha256(),
        begun_from(config),
        code_sha256(__name__),
    )
    return Trainer(train, sha256(" ".join(parts).encode()))


def _train_unreleased(
    images: ImageSet, config: TrainingConfig, privacy: PrivacyConfig, seed: int
) -> Untrained:
    """DP-SGD at the configured ε, without the ledger."""
    use_cpu(config.threads)
    network = initialise(images, config, seed=seed)
    run = plan_run(len(images), privacy, epochs=config.epochs)
    train_privately(network, images, privacy, run, crop_padding=config.crop_padding, device=config.device)
    return network


def attack_ceiling(plan: Plan, privacy: PrivacyConfig, *, epochs: int) -> float:
    """Highest true-positive rate of any attack on a plan's models at 1 % false positives; 1 without privacy.

    It follows from the noise, sampling rate and steps with which these models, not a contribution, are made.
    """
    if not privacy.is_dp:
        return 1.0
    runs = {plan_run(int(count), privacy, epochs=epochs) for count in plan.members.sum(1)}
    return max(highest_true_positive_rate(run) for run in runs)


def train_cached(images: ImageSet, trainer: Trainer, *, seed: int, cache: Path) -> Contribution:
    """Train a model, or take the one trained before; in the cache each is whole or absent."""
    folder = cache / training_key(images, trainer.config_hash, seed=seed)[:32]
    if not (folder / MANIFEST).exists():
        check_writable(cache)
        write_cached(folder, trainer.train(images, seed), {})
    return read_cached(folder)


def train_shadows(
    plan: Plan, trainer: Trainer, *, cache: Path, seed: int, observe: Observer = ignore
) -> list[Contribution]:
    """One model for each row of the plan; a kill loses at most the one in training."""
    models = []
    for index in range(len(plan.members)):
        observe("train shadows", index, len(plan.members))
        model_seed = derive_seed(seed, "shadow", index)
        models.append(train_cached(plan.training_images(index), trainer, seed=model_seed, cache=cache))
    observe("train shadows", len(models), len(models))
    return models


@torch.no_grad()
def score_network(plan: Plan, network: Classifier, spec: InputSpec) -> Floats:
    """φ of every image of the plan, [images], from a network's own outputs."""
    logits = [network(to_input(part, spec)) for part in plan.images.images.split(FEATURE_BATCH)]
    return membership_scores(torch.cat(logits), plan.images.labels)


@dataclass(frozen=True, eq=False)
class Target:
    """Something released, under attack: one version of it for each model of the plan."""

    name: str
    scores: Floats
    """φ, [models, images]; of the plan's models the first so many."""


@dataclass(frozen=True)
class Finding:
    """What the attacks found on one target."""

    target: str
    models: int
    """Each is attacked once, with the others as shadows."""
    exposures: Mapping[str, Mapping[str, Exposure]]
    """``natural`` or ``canaries``, then the attack's name, to what it reached."""
    bound: EpsilonBound
    """From LiRA online on the canaries."""


def examine(plan: Plan, target: Target, *, delta: float) -> Finding:
    """Attack a target with everything in ATTACKS, natural images and canaries apart.

    Args:
        delta: of the bound on ε; the contribution's own.
    """
    exposures = {
        kind: {name: exposure(*evidence_on(plan, target, kind, attack)) for name, attack in ATTACKS.items()}
        for kind in (NATURAL, CANARIES)
    }
    bound = audit_epsilon(*evidence_on(plan, target, CANARIES), delta=delta)
    return Finding(target.name, len(target.scores), exposures, bound)


def evidence_on(plan: Plan, target: Target, kind: str, attack: Attack = lira_online) -> tuple[Floats, Mask]:
    """What an attack sorts one kind of image by, and the truth, [models, images of that kind] each."""
    chosen = (plan.canaries if kind == CANARIES else ~plan.canaries).numpy()
    members = plan.members[: len(target.scores)].numpy()[:, chosen]
    scores = target.scores[:, chosen]
    what = f"the attack {next((name for name, each in ATTACKS.items() if each is attack), '')!r}"
    with extending(what, attack):
        evidence = attack(scores, members.copy())  # it cannot change what it is held against
    if not isinstance(evidence, np.ndarray) or evidence.shape != scores.shape or np.isnan(evidence).any():
        raise ExtensionError(
            f"{what} gave {described(evidence)}, where numbers {list(scores.shape)} without NaN are expected"
        )
    return evidence, members


def score_models(plan: Plan, models: Sequence[Contribution]) -> Target:
    """Every image of the plan on every model."""
    scores = [score_network(plan, model.network(), model.input) for model in models]
    return Target("model", np.stack(scores))


def rehearse(config: ClientConfig, *, shadows: int, observe: Observer = ignore) -> tuple[Plan, Finding]:
    """Measure what the model that this configuration would contribute gives away.

    Args:
        config: as for ``pretrain``, privacy included; the shadows are kept in its cache, and its ledger
            is left alone.
    """
    images = load_configured(
        config.data, size=config.training.image_size, on_read=lambda done, of: observe("read", done, of)
    )
    plan = make_plan(images, shadows=shadows, seed=config.seed)
    trainer = trainer_of(config.training, config.privacy)
    models = train_shadows(plan, trainer, cache=config.cache, seed=config.seed, observe=observe)
    return plan, examine(plan, score_models(plan, models), delta=config.privacy.delta)
