"""What a rehearsal's pace comes to for a whole run: seconds by stage, memory and disk."""

import resource
import sys
from dataclasses import dataclass

from client.adapting.adapt import SHOTS
from client.training.fit import course
from fedfree.episodes import EpisodeSpec
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
SCORE_BYTES = 4


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
        "prepare": _prepare_seconds(plan),
        "train": sum(_training_seconds(model, pace) for model in plan.to_train),
        "learn": plan.config.server.iterations * _iteration_seconds(plan, pace),
        "adapt": _adapt_seconds(plan, pace),
        "evaluate": _evaluate_seconds(plan, pace) + pooled + _dense_seconds(plan, pace),
    }
    return Estimate(
        seconds, pooled, bool(pace.step) or not plan.to_train, _memory(plan, pace), _disk(plan, pace)
    )


def steps_of(model: PlannedModel) -> int:
    """Steps of a training, from random weights or a start."""
    held = int(model.images * model.training.held_out_fraction)
    return course(max(1, model.images - held), model.training).steps


def _training_seconds(model: PlannedModel, pace: Pace) -> float:
    step = pace.step.get((str(model.training.architecture), model.training.image_size), 0.0)
    return steps_of(model) * step


def _pooled_seconds(plan: Plan, pace: Pace) -> float:
    """One network on everybody's images, as many passes as an organisation makes; one for each data set."""
    if not plan.config.has_pooled:
        return 0.0
    seconds = 0.0
    for place in range(len(plan.datasets)):
        own = plan.models[place :: len(plan.datasets)]
        together = sum(model.images for model in own)
        training = pooled_course(own[0].training, together // len(own))
        seconds += _training_seconds(PlannedModel(training, own[0].classes, together, False), pace)
    return seconds


def _dense_seconds(plan: Plan, pace: Pace) -> float:
    """A generator through all models, and a student, for each combination of settings."""
    config, dense = plan.config.server, plan.config.dense
    if not dense.trained:
        return 0.0
    models = len(plan.models)
    step = models * pace.invert / (config.invert.steps + 1)
    drawn = batches(config, models) * dense.generator_steps * step
    iteration = drawn + student_steps(config, models) * pace.distil
    return len(choices(dense, config)) * config.iterations * iteration


def _iteration_seconds(plan: Plan, pace: Pace) -> float:
    config = plan.config.server
    models = min(config.invert.models_per_iteration, len(plan.models))
    recovered, learn = models * config.invert.images_per_model, config.learn
    asked = recovered + learn.compositions + (learn.public_images if plan.config.public_images else 0)
    tasks = learn.relational_tasks + models * learn.own_tasks
    return (
        models * pace.invert
        + (asked * pace.ask if learn.relational_tasks else 0.0)
        + tasks * pace.distil
        + learn.replay_episodes * pace.replay
    )


def _adapt_seconds(plan: Plan, pace: Pace) -> float:
    """Every organisation measures the meta-learner on some classes of meta_test."""
    classes = max(ORGANISATION_CLASSES, plan.config.n_way)
    test = plan.split_images("meta_test")
    known = [_classes(plan, place) for place in range(len(plan.datasets))]
    images = sum(
        test[index % len(test)] * min(1.0, classes / known[index % len(test)])
        for index in range(plan.config.clients)
    )
    return images * pace.embed + plan.config.clients * ORGANISATION_EPISODES * sum(pace.episodes.values())


def _classes(plan: Plan, place: int) -> int:
    """Classes of a data set's meta_test; a guess where it is not there yet."""
    return plan.datasets[place].test_classes or 20


def _evaluate_seconds(plan: Plan, pace: Pace) -> float:
    """The meta-learner and each baseline on meta_test; every model on meta_val, to choose the best."""
    config, models = plan.config, len(plan.models)
    test, val = sum(plan.split_images("meta_test")), sum(plan.split_images("meta_val"))
    if config.starts:
        val = min(val, CHOICE_IMAGES * sum(each.val_classes for each in plan.datasets))
    episodes = config.episodes * len(plan.datasets)
    networks = 4 + config.has_pooled + config.dense.trained
    one, *_ = (pace.episodes[EpisodeSpec(config.n_way, shots, config.n_query).name] for shots in SHOTS)
    chosen = models * (val * pace.embed + CHOICE_EPISODES * len(plan.datasets) * one)
    side_by_side = models * test * pace.embed + episodes * sum(pace.wide_episodes.values())
    return networks * (test * pace.embed + episodes * sum(pace.episodes.values())) + chosen + side_by_side


def _prepare_seconds(plan: Plan) -> float:
    missing = [each for each in plan.datasets if not each.is_there and each.images]
    return sum(sum((each.images or {}).values()) for each in missing) / GLYPHS_A_SECOND


def peak_bytes() -> int:
    """Most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _memory(plan: Plan, pace: Pace) -> int:
    """What the rehearsal took, with the images of the largest split and what the server remembers."""
    config, size = plan.config.server, max(plan.config.dealt_image_sizes)
    image = channels_of(plan.config) * size * size
    features = SCORE_BYTES * len(plan.models) * max(1, pace.feature_size) // 2
    kept = min(
        config.learn.memory_images,
        config.iterations * config.invert.models_per_iteration * config.invert.images_per_model,
    )
    shown = config.iterations * (
        config.learn.compositions + config.invert.models_per_iteration * config.invert.images_per_model
    )
    tested = sum(plan.split_images("meta_test")) * (
        image + SCORE_BYTES * len(plan.models) * pace.feature_size
    )
    learned = kept * image + min(config.learn.memory_images, shown) * (image + features)
    return peak_bytes() + max(tested, learned) + min(64, len(plan.models)) * pace.model_bytes


def _disk(plan: Plan, pace: Pace) -> int:
    """A cached and a stored copy of each model, the checkpoint, and data sets that are made."""
    missing = [each for each in plan.datasets if not each.is_there]
    data = sum(sum((each.images or {}).values()) for each in missing) * 800
    return data + (len(plan.to_train) + len(plan.models) + 6) * pace.model_bytes


def specs(plan: Plan) -> list[EpisodeSpec]:
    """Kinds of episodes that are measured."""
    return episode_specs(plan.config)
