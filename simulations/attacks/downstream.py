"""What a server makes of a contribution, in small, so that it can be attacked: a student, a meta-learner."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from client.adapting.adapt import extract_features
from client.data.image_set import LazyInputs
from client.rehearsing.attacks import Floats, membership_scores
from client.rehearsing.rehearse import Plan
from fedfree.adaptation import nearest_mean
from fedfree.architectures import Classifier, build, use_channels_last
from fedfree.codec import Contribution, MetaLearner, encode_contribution, encode_tensors
from fedfree.host.compute import use_cpu
from fedfree.seeding import derive_seed, make_generator
from fedfree.start import LoadedStart, fill_body, trained_tensors
from server import pipeline
from server.config import ServerConfig
from server.events import ignore
from server.learning.memory import to_pixels
from server.learning.meta_learn import DistillationTask, align
from server.learning.moves import invert
from server.learning.pool import Member
from server.learning.state import begin
from server.storage.store import Store
from server.verify.verify import verify_received

STUDENT_BATCH = 64


@dataclass(frozen=True, eq=False)
class SyntheticImages:
    """What FIVE took out of one model alone."""

    member: Member
    images: Tensor
    """[images, channels, size, size], uint8; the newest last."""


def recover_images(
    contribution: Contribution, config: ServerConfig, start: LoadedStart | None = None
) -> SyntheticImages:
    """Invert one model for ``config.iterations`` meta-iterations."""
    use_cpu(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = _store_of(Path(folder), [contribution], start)
        verify_received(store, ignore)
        pool = pipeline.open_pool(store, config)
        pool.require(1)
        state = begin(pool, config)
        for iteration in range(config.iterations):
            invert(state, iteration)
        rows = state.memory.rows
        return SyntheticImages(pool.member(0), rows["images"][rows.oldest_first()])


def _store_of(folder: Path, contributions: Sequence[Contribution], start: LoadedStart | None) -> Store:
    store = Store(folder / "store", lambda: start)
    for contribution in contributions:
        sent = _as_sent(contribution, start) if start else contribution
        store.receive(encode_contribution(sent), sent.weights)
    return store


def _as_sent(contribution: Contribution, start: LoadedStart) -> Contribution:
    """A model of the audit as an organisation sends it: only what was trained, and from which start."""
    tensors = trained_tensors(contribution.network(), start.body)
    return replace(
        contribution,
        start=start.start.sha256,
        privacy=replace(contribution.privacy, initial_weights=start.start.initial_weights),
        weights=encode_tensors(tensors),
    )


def distil_student(
    contribution: Contribution,
    recovered: SyntheticImages,
    config: ServerConfig,
    *,
    steps: int,
    start: LoadedStart | None = None,
) -> Classifier:
    """A fresh network of the same architecture, taught by the model on its recovered images alone.

    Args:
        start: what the network begins from, as the model did.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "student"))
        student = build(
            contribution.architecture, num_classes=contribution.num_classes, input=contribution.input
        )
    if start:
        fill_body(student, start.body, str(contribution.architecture))
    student.to(recovered.member.device)
    use_channels_last(student)
    rng = make_generator(config.seed, "student batches")
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learn.inner_learning_rate)
    for _ in range(steps):
        align(
            student,
            [optimizer],
            [_task(recovered, rng)],
            contribution.input,
            config.learn,
            frozen_statistics=start is not None,
        )
    return student.cpu()


@torch.no_grad()
def _task(recovered: SyntheticImages, rng: torch.Generator) -> DistillationTask:
    drawn = torch.randint(len(recovered.images), (STUDENT_BATCH,), generator=rng)
    images = to_pixels(recovered.images[drawn.to(recovered.images.device)])
    spec = recovered.member.input
    logits = recovered.member.network(spec.normalise(spec.resize(images)))
    return DistillationTask(images, teacher_logits=logits)


def learn_meta_learner(
    contributions: Sequence[Contribution], config: ServerConfig, start: LoadedStart | None = None
) -> MetaLearner:
    """The server's whole pipeline on a small federation."""
    with tempfile.TemporaryDirectory() as folder:
        return pipeline.run(_store_of(Path(folder), contributions, start), config).meta_learner


def score_meta_learner(plan: Plan, meta_learner: MetaLearner) -> Floats:
    """φ of every image, [images], with cosine similarities to the class means as the logits.

    The means are those of the natural images of all classes, members or not: an attacker who wants to
    know who was a member has the images of both.
    """
    recipe, inputs = meta_learner.recipe, LazyInputs(plan.images.images, meta_learner.input)
    features = extract_features(meta_learner.network(), inputs, recipe)
    labels, natural = plan.images.labels, ~plan.canaries
    head = nearest_mean(
        features[natural],
        labels[natural],
        n_way=plan.images.num_classes,
        temperature=recipe.temperature,
    )
    return membership_scores(head.logits(features), labels)
