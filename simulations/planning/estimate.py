"""What a rehearsal's pace comes to for a whole run: seconds by stage, memory and disk."""

import itertools
from dataclasses import dataclass

from fedfree.host.compute import peak_memory
from server.learning.pool import cached_networks
from simulations.baselines.dense import batches, choices, student_steps
from simulations.baselines.evaluate import CHOICE_IMAGES
from simulations.baselines.pooled import pooled_course
from simulations.baselines.table import CHOICE_EPISODES
from simulations.federation.prepare import ORGANISATION_CLASSES, ORGANISATION_EPISODES
from simulations.federation.splits import episode_specs
from simulations.planning.plan import Plan, PlannedModel
from simulations.planning.rehearsal import Pace, channels_of

GLYPHS_A_SECOND = 1500.0
"""How fast glyphs are drawn on one slow core."""
GLYPH_BYTES = 800
"""Of one in its zip."""


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    seconds: dict[str, float]
    """By stage."""
    pooled_seconds: float
    """Of these: training the reference on everybody's images, which the cache may hold."""
    is_complete: bool
    """Whether everything could be timed; private training cannot."""
    memory_bytes: int
    """Of the process, at its peak."""
    disk_bytes: int
    """Of run directory and cache together, beyond what is there."""


def estimate(plan: Plan, pace: Pace) -> Estimate:
    """Scale a pace to a plan."""
    pooled = _pooled_seconds(plan, pace)
    seconds = {
        "prepare": plan.images_to_draw / GLYPHS_A_SECOND,
        "train": sum(_training_seconds(model, pace) for model in plan.to_train),
        "learn": plan.config.server.iterations * _iteration_seconds(plan, pace),
        "adapt": _adapt_seconds(plan, pace),
        "evaluate": _evaluate_seconds(plan, pace) + pooled + _dense_seconds(plan, pace),
    }
    is_complete = bool(pace.step) or not plan.to_train
    return Estimate(seconds, pooled, is_complete, _memory(plan, pace), _disk(plan, pace))


def _training_seconds(model: PlannedModel, pace: Pace) -> float:
    return model.steps * pace.step.get(model.kind, 0.0)


def _iteration_seconds(plan: Plan, pace: Pace) -> float:
    config, learn = plan.config.server, plan.config.server.learn
    models = batches(config, len(plan.models))
    public = learn.public_images if plan.config.public_images else 0
    asked = models * config.invert.images_per_model + learn.compositions + public
    return models * pace.invert + asked * pace.ask + student_steps(config, len(plan.models)) * pace.distil


def _adapt_seconds(plan: Plan, pace: Pace) -> float:
    """Every organisation measures the meta-learner on some classes of meta_test."""
    classes = max(ORGANISATION_CLASSES, plan.config.n_way)
    known = [(each.images("meta_test"), max(1, each.classes("meta_test"))) for each in plan.datasets]
    dealt = itertools.islice(itertools.cycle(known), plan.config.clients)
    images = sum(there * min(1.0, classes / of_classes) for there, of_classes in dealt)
    return images * pace.embed + plan.config.clients * ORGANISATION_EPISODES * sum(pace.episodes.values())


def _evaluate_seconds(plan: Plan, pace: Pace) -> float:
    """The meta-learner and each baseline on meta_test; every model on meta_val, to choose the best."""
    config, models = plan.config, len(plan.models)
    test, val = plan.images("meta_test"), plan.images("meta_val")
    if config.starts:
        val = min(val, CHOICE_IMAGES * sum(each.classes("meta_val") for each in plan.datasets))
    episodes = config.episodes * len(plan.datasets)
    networks = 4 + config.has_pooled + config.dense.trained
    one = pace.episodes[episode_specs(config)[0].name]
    chosen = models * (val * pace.embed + CHOICE_EPISODES * len(plan.datasets) * one)
    side_by_side = models * test * pace.embed + episodes * sum(pace.wide_episodes.values())
    return networks * (test * pace.embed + episodes * sum(pace.episodes.values())) + chosen + side_by_side


def _pooled_seconds(plan: Plan, pace: Pace) -> float:
    """One network on everybody's images, as many passes as an organisation makes; one for each data set."""
    if not plan.config.has_pooled:
        return 0.0
    seconds = 0.0
    for place in range(len(plan.datasets)):
        own = plan.models[place :: len(plan.datasets)]
        together = sum(model.images for model in own)
        training = pooled_course(own[0].training, together // len(own))
        seconds += _training_seconds(PlannedModel(training, own[0].classes, together), pace)
    return seconds


def _dense_seconds(plan: Plan, pace: Pace) -> float:
    """A generator through all models, and a student, for each combination of settings."""
    config, dense = plan.config.server, plan.config.dense
    if not dense.trained:
        return 0.0
    models = len(plan.models)
    drawn = models * batches(config, models) * dense.generator_steps * pace.invert / (config.invert.steps + 1)
    iteration = drawn + student_steps(config, models) * pace.distil
    return len(choices(dense, config)) * config.iterations * iteration


def _memory(plan: Plan, pace: Pace) -> int:
    """What the rehearsal took, with the images of the largest split and what the server remembers."""
    config, size = plan.config.server, max(plan.config.dealt_image_sizes)
    image, features = channels_of(plan.config) * size * size, 4 * len(plan.models) * pace.feature_size
    each = config.invert.models_per_iteration * config.invert.images_per_model
    kept = min(config.learn.memory_images, config.iterations * each)
    shown = min(config.learn.memory_images, config.iterations * (each + config.learn.compositions))
    tested = plan.images("meta_test") * (image + features)
    learned = kept * image + shown * (image + features // 2)
    return peak_memory() + max(tested, learned) + cached_networks(len(plan.models)) * pace.model_bytes


def _disk(plan: Plan, pace: Pace) -> int:
    """A cached and a stored copy of each model, the checkpoint, and data sets that are made."""
    models = len(plan.to_train) + len(plan.models) + 6
    return plan.images_to_draw * GLYPH_BYTES + models * pace.model_bytes
