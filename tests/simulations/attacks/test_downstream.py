"""Students and meta-learners stay close enough to what they learned from to be worth attacking."""

import pytest
import torch

from client.config import TrainingConfig
from client.data.image_set import ImageSet, to_input
from client.rehearsing.rehearse import make_plan, trainer_of
from fedfree.codec import Contribution
from server.config import InvertConfig, ServerConfig
from server.learning.invert import kl_divergence
from simulations.attacks.downstream import (
    distil_student,
    learn_meta_learner,
    recover_images,
    score_meta_learner,
)

SERVER = ServerConfig(
    iterations=6,
    threads=1,
    device="cpu",
    precision="float32",
    invert=InvertConfig(images_per_model=30, steps=3, generator_width=4, latent_size=16),
)


def make_images(seed: int) -> ImageSet:
    """Noise of three shades, lit from above."""
    labels = torch.arange(120) % 3
    noise = torch.randint(0, 60, (120, 1, 16, 16), generator=torch.Generator().manual_seed(seed))
    return ImageSet((noise + 90 * labels[:, None, None, None]).to(torch.uint8), labels, ("a", "b", "c"))


@pytest.fixture(scope="module")
def models() -> list[Contribution]:
    trainer = trainer_of(TrainingConfig(image_size=16, epochs=1, min_steps=40, batch_size=30, threads=1))
    return [trainer.train(make_images(seed), seed) for seed in range(2)]


def test_a_student_learns_from_synthetic_images_what_its_model_says_of_them(
    models: list[Contribution],
) -> None:
    model = models[0]
    recovered = recover_images(model, SERVER)
    assert recovered.images.shape == (180, 1, 16, 16)
    students = [distil_student(model, recovered, SERVER, steps=steps) for steps in (0, 60)]
    inputs = to_input(recovered.images, model.input)
    with torch.no_grad():
        taught, *learned = (network(inputs) for network in (model.network(), *students))
    before, after = (float(kl_divergence(taught, logits).mean()) for logits in learned)
    assert after < before / 10


def test_the_meta_learner_scores_images_by_the_natural_members_of_their_class(
    models: list[Contribution],
) -> None:
    learn = SERVER.learn.model_copy(update={"batch_size": 16, "compositions": 4, "relational_tasks": 2})
    meta_learner = learn_meta_learner(models, SERVER.model_copy(update={"iterations": 2, "learn": learn}))
    plan = make_plan(make_images(0), shadows=4, seed=0)
    scores = score_meta_learner(plan, meta_learner)
    canaries = plan.canaries.numpy()
    assert (scores[~canaries] > 0).mean() > 0.9
    assert (scores[canaries] < 0).all()
