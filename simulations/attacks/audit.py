"""An audit from data set to findings: train, invert, distil, attack. Continues after a kill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from client.data.finding import list_classes, list_splits
from client.data.image_set import ImageSet
from client.data.loading import load_images
from client.rehearsing.attacks import roc
from client.rehearsing.rehearse import (
    CANARIES,
    NATURAL,
    Finding,
    Plan,
    Target,
    Trainer,
    evidence_on,
    examine,
    make_plan,
    score_models,
    score_network,
    train_cached,
    train_shadows,
    trainer_of,
)
from client.training.observer import Observer, ignore
from fedfree.codec import Contribution, sha256
from fedfree.host.code import code_sha256
from fedfree.host.files import write_file
from fedfree.host.starts import describe_folder
from fedfree.seeding import derive_seed, make_generator
from simulations.attacks.config import AuditConfig
from simulations.attacks.downstream import (
    distil_student,
    learn_meta_learner,
    recover_images,
    score_meta_learner,
)
from simulations.attacks.memorisation import (
    Nearness,
    feature_distances,
    memorisation_check,
    pixel_distances,
    ssim_distances,
)
from simulations.attacks.pictures import pairs_picture, roc_picture
from simulations.federation.datasets import partition, resolve

CHECKED_IMAGES = 200
"""Synthetic images of the first model that the memorisation check looks at: the newest."""
FEATURES = "features of another shadow"

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything an audit found."""

    plan: Plan
    targets: tuple[Target, ...]
    findings: tuple[Finding, ...]
    synthetic: Tensor
    """Newest synthetic images of the first model, uint8 [images, channels, size, size]."""
    nearness: dict[str, Nearness]
    """Measure of distance to what the memorisation check found on them."""


def audit_organisation(run: Path, config: AuditConfig, *, observe: Observer = ignore) -> Audit:
    """Audit one organisation of a data set.

    Args:
        run: folder for models and scores, with which an audit that was killed continues. No ledger is
            kept: nothing of it is released.
    """
    config = config.begun()
    trainer = trainer_of(config.training, config.privacy)
    organisation, *companions = load_organisations(config)
    plan, models = plan_and_train(organisation, trainer, config, cache=run / "models", observe=observe)
    student, synthetic = distilled_students(run / "students", plan, models, config, observe)
    targets = [score_models(plan, models), student]
    if config.meta_learner:
        others = train_companions(companions, trainer, cache=run / "models", seed=config.seed)
        federated = models[: config.meta_learner]
        targets.append(broadcast_meta_learners(run / "federations", plan, federated, others, config, observe))
    findings = tuple(examine(plan, target, delta=config.privacy.delta) for target in targets)
    return Audit(plan, tuple(targets), findings, synthetic, check_memorisation(plan, models[1], synthetic))


def plan_and_train(
    organisation: ImageSet, trainer: Trainer, config: AuditConfig, *, cache: Path, observe: Observer
) -> tuple[Plan, list[Contribution]]:
    """The plan of the audit and its models; those in the cache are taken."""
    plan = make_plan(
        organisation, shadows=config.shadows, canary_fraction=config.canary_fraction, seed=config.seed
    )
    return plan, train_shadows(plan, trainer, cache=cache, seed=config.seed, observe=observe)


def train_companions(
    companions: Sequence[ImageSet], trainer: Trainer, *, cache: Path, seed: int
) -> list[Contribution]:
    """The other organisations' models, on all their images."""
    return [
        train_cached(images, trainer, seed=derive_seed(seed, "companion", index), cache=cache)
        for index, images in enumerate(companions)
    ]


def load_organisations(config: AuditConfig) -> list[ImageSet]:
    """The audited organisation's images, then those of its companions.

    Raises:
        DataError: the data set is missing, or has too few classes.
    """
    source = resolve(
        config.dataset, cache=config.cache, seed=config.seed, images_per_class=config.images_per_class
    )
    split = next(iter(list_splits(source)), None)
    shares = partition(
        list(list_classes(source, split)),
        organisations=1 + (config.companions if config.meta_learner else 0),
        classes_each=config.classes,
        how="overlapping",
        seed=config.seed,
    )
    return [
        load_images(
            source,
            split=split,
            classes=classes,
            images_per_class=config.images_per_class,
            size=config.training.image_size,
            channels=describe_folder(start).input.channels if (start := config.training.start) else None,
        )
        for classes in shares
    ]


def distilled_students(
    folder: Path, plan: Plan, models: Sequence[Contribution], config: AuditConfig, observe: Observer
) -> tuple[Target, Tensor]:
    """Students of each model's synthetic images, and the first model's newest images."""
    server, steps, start = config.student_server(), config.student_steps, config.loaded_start()

    def distil(model: Contribution) -> Tensors:
        recovered = recover_images(model, server, start)
        student = distil_student(model, recovered, server, steps=steps, start=start)
        scores = torch.from_numpy(score_network(plan, student, model.input))
        return {"scores": scores, "recovered": recovered.images[-CHECKED_IMAGES:].cpu().contiguous()}

    made = []
    for index, model in enumerate(models):
        observe("distil students", index, len(models))
        path = folder / _cache_name(plan, [model], server.sha256(), str(steps))
        made.append(_cached(path, partial(distil, model)))
    observe("distil students", len(models), len(models))
    return _target("student", made), made[0]["recovered"]


def broadcast_meta_learners(
    folder: Path,
    plan: Plan,
    models: Sequence[Contribution],
    companions: Sequence[Contribution],
    config: AuditConfig,
    observe: Observer,
) -> Target:
    """A federation of each model and its companions, and its meta-learner."""
    server, start = config.meta_learner_server(), config.loaded_start()

    def learn(model: Contribution) -> Tensors:
        meta_learner = learn_meta_learner([model, *companions], server, start)
        return {"scores": torch.from_numpy(score_meta_learner(plan, meta_learner))}

    made = []
    for index, model in enumerate(models):
        observe("run federations", index, len(models))
        path = folder / _cache_name(plan, [model, *companions], server.sha256())
        made.append(_cached(path, partial(learn, model)))
    observe("run federations", len(models), len(models))
    return _target("meta-learner", made)


def _target(name: str, made: Sequence[Tensors]) -> Target:
    return Target(name, torch.stack([each["scores"] for each in made]).numpy())


def _cache_name(plan: Plan, models: Sequence[Contribution], *settings: str) -> str:
    learned = (plan.images.fingerprint(), *(sha256(model.weights) for model in models), *settings)
    code = code_sha256("fedfree", "server", "simulations.attacks", "client.rehearsing", "client.data")
    return f"{sha256(' '.join((*learned, code, torch.__version__)).encode())[:32]}.safetensors"


def _cached(path: Path, make: Callable[[], Tensors]) -> Tensors:
    """What the file holds, or what is made and then written there, whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, safetensors.torch.save(make()))
    return safetensors.torch.load(path.read_bytes())


def check_memorisation(plan: Plan, witness: Contribution, synthetic: Tensor) -> dict[str, Nearness]:
    """The first model's synthetic images against its training images and those it did not see.

    Args:
        witness: another model of the plan, whose own half says nothing about the first model's.
    """
    measures = {"pixels": pixel_distances, "SSIM": ssim_distances, FEATURES: feature_distances(witness)}
    return memorisation_check(
        synthetic,
        plan.training_images(0).images,
        plan.unseen_images(0).images,
        measures,
        rng=make_generator(0, "memorisation"),
    )


def draw_pictures(audit: Audit, run: Path) -> list[Path]:
    """Write roc.png, roc.svg and pairs.png."""
    curves = {
        f"{target.name}, {kind}": roc(*evidence_on(audit.plan, target, kind))
        for target in audit.targets
        for kind in (CANARIES, NATURAL)
    }
    roc_picture(curves, run / "roc.png")
    private, held_out = audit.plan.training_images(0).images, audit.plan.unseen_images(0).images
    pairs_picture(audit.nearness, audit.synthetic, private, held_out, run / "pairs.png")
    return [run / "roc.png", run / "pairs.png"]
