"""The state of learning: everything that its moves change and a checkpoint holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, build, use_channels_last
from fedfree.codec import sha256
from fedfree.errors import ConfigError
from fedfree.release import this_release
from fedfree.seeding import derive_seed, make_generator
from server.config import ServerConfig
from server.learning.generator import Generator
from server.learning.memory import Memory, Ring
from server.learning.merge import further_means, merge_into
from server.learning.optimizer import make_adam, state_tensors
from server.learning.pool import Pool, common_classes, common_input, number_shapes
from server.learning.public_images import PublicImages
from server.learning.teachers import Teachers, appoint, draw_alike
from server.learning.team import ALONE, Team
from server.learning.trust import Trust

VALIDATION_IMAGES = 2000
"""Most that are kept for judging, newest last."""


@dataclass(frozen=True, eq=False)
class State:
    """Networks, optimizers, memory and random stream, beside what learning was begun with and never changes.

    With a team of several processes each holds all of it.
    """

    pool: Pool
    config: ServerConfig
    input: InputSpec
    """Of the meta-learner."""
    num_classes: int
    """Of the meta-learner: as many as :func:`common_classes`, and enough for the replay."""
    shapes: Tensor
    """The number of each model's shape of input, [models]."""
    generator: Generator
    meta_learner: Classifier
    teachers: Sequence[Teachers]
    """For each shape of input."""
    memory: Memory
    validation: Memory
    """Recovered images that nothing is learned from; only of models from a start."""
    generator_optimizer: torch.optim.Adam
    path_optimizers: Sequence[torch.optim.Adam]
    """Of the meta-learner and the projections, one for each path through the tasks."""
    replay_optimizer: torch.optim.Adam
    rng: torch.Generator
    """From which every move draws."""
    shape_inputs: Sequence[InputSpec]
    """What a model of each shape takes."""
    public_images: PublicImages | None = None
    """Shown to the teachers beside recovered ones."""
    merged: Mapping[str, Trust] = field(default_factory=dict)
    """How much each model counts in the mean of those that began where the meta-learner does, by its id."""
    left_out: set[str] = field(default_factory=set)
    """Ids of models of which something was not finite, and not used."""

    @property
    def recipe(self) -> Recipe:
        """How the meta-learner is adapted; images are mirrored only where every model allows it."""
        recipe = self.config.recipe
        return replace(recipe, mirror=recipe.mirror and self.input.horizontal_flip)

    @property
    def projections(self) -> list[nn.Linear]:
        """Those of the teachers, in their order."""
        return _projections(self.teachers)

    def doubted(self) -> dict[str, Trust]:
        """By id the models that do not count in full, in the mean or as teachers, whichever is less."""
        found: dict[str, Trust] = {}
        heard = [
            (member.id, trust)
            for each in self.teachers
            if self.config.learn.robust and self.config.learn.relational_tasks
            for member, trust in zip(each.members, each.trusts(), strict=True)
        ]
        for identity, trust in (*self.merged.items(), *heard):
            if trust.weight < found.get(identity, Trust(1.0)).weight:
                found[identity] = trust
        return found

    @property
    def images_recovered(self) -> int:
        """So far, those that the memory has forgotten included."""
        return self.memory.rows.added

    def fingerprint(self) -> str:
        """Hexadecimal hash of what tensors fit: release, configuration, models, names and shapes."""
        layout = (f"{name} {tuple(tensor.shape)}" for name, tensor in self._live_tensors())
        rings = (name for name, _ in self._rings())
        shown = [self.public_images.sha256] if self.public_images else []
        known = [this_release(), self.config.sha256(), *self.pool.ids, *layout, *rings, *shown]
        return sha256("\n".join(known).encode())

    def tensors(self, team: Team = ALONE) -> dict[str, Tensor]:
        """Everything that decides how learning goes on, by name; every process of the team must call it."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._live_tensors()}
        team.sum(_zeroed_unless_owned(tensors, team.share(range(len(self.path_optimizers)))))
        tensors["rng"] = self.rng.get_state()
        for name, rows in self._rings():
            tensors |= {f"{name}.{key}": tensor for key, tensor in rows.tensors().items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` returned for a state of the same fingerprint."""
        for name, tensor in self._live_tensors():
            tensor.copy_(tensors[name])
        self.rng.set_state(tensors["rng"])
        for name, rows in self._rings():
            prefix = f"{name}."
            rows.restore(
                {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
            )

    def _live_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that learning changes in place."""
        networks: dict[str, nn.Module] = {"generator": self.generator, "meta_learner": self.meta_learner}
        networks |= {f"projection{number}": each for number, each in enumerate(self.projections)}
        for name, network in networks.items():
            yield from ((f"{name}.{key}", tensor) for key, tensor in network.state_dict().items())
        optimizers = {
            "generator_optimizer": self.generator_optimizer,
            "replay_optimizer": self.replay_optimizer,
            **{f"path{path}": optimizer for path, optimizer in enumerate(self.path_optimizers)},
        }
        for name, optimizer in optimizers.items():
            yield from ((f"{name}.{key}", tensor) for key, tensor in state_tensors(optimizer))

    def _rings(self) -> tuple[tuple[str, Ring], ...]:
        corpora = ((f"corpus{shape}", each.corpus.rows) for shape, each in enumerate(self.teachers))
        return (("memory", self.memory.rows), ("validation", self.validation.rows), *corpora)


def begin(pool: Pool, config: ServerConfig, public_images: PublicImages | None = None) -> State:
    """Networks, an empty memory and optimizers at rest; the configuration's seed decides all of it.

    Where the models began from one start, the meta-learner is their mean; else it is random. Of several
    starts it is the mean of the first one's models, and the means of the others teach it besides.

    Raises:
        FederationError: no model began from the first start.
    """
    said = [(each.input, each.num_classes) for each in pool.descriptions()]
    inputs = [input for input, _ in said]
    input, shapes = common_input(inputs, pool.voices), number_shapes(inputs)
    if pool.start:
        input = replace(pool.start.input, horizontal_flip=input.horizontal_flip)
    classes = common_classes([count for _, count in said], pool.voices)
    num_classes = max(config.learn.replay_ways, classes)
    alike = draw_alike(pool, shapes, at_most=config.learn.max_teachers, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initialisation"))
        generator = _build_generator(pool, config, input)
        meta_learner = build(architecture_of(pool, config), num_classes=num_classes, input=input)
        use_channels_last(meta_learner.to(pool.device, pool.dtype))
        means = further_means(pool, robust=config.learn.robust)
        teachers = appoint(
            alike, meta_learner.feature_size, config.learn, origins=pool.voices, everywhere=means
        )
    merged = merge_into(meta_learner, pool, robust=config.learn.robust) if pool.start else {}
    rates = config.invert.outer_learning_rate, config.learn.inner_learning_rate
    learned = list(nn.ModuleList([meta_learner, *_projections(teachers)]).parameters())
    return State(
        pool=pool,
        config=config,
        input=input,
        num_classes=num_classes,
        shapes=shapes,
        generator=generator,
        meta_learner=meta_learner,
        teachers=teachers,
        memory=Memory(config.learn.memory_images, pool.device),
        validation=Memory(VALIDATION_IMAGES, pool.device),
        generator_optimizer=make_adam(generator.parameters(), rates[0], betas=(0.5, 0.999)),
        path_optimizers=[make_adam(learned, rates[1]) for _ in range(config.learn.paths)],
        replay_optimizer=make_adam(meta_learner.parameters(), config.learn.replay_learning_rate),
        rng=make_generator(config.seed, "learn"),
        shape_inputs=[inputs[shapes.tolist().index(shape)] for shape in range(len(teachers))],
        public_images=public_images,
        merged=merged,
    )


def architecture_of(pool: Pool, config: ServerConfig) -> Architecture:
    """Of the meta-learner: the start's, or without one what is configured; raises ConfigError."""
    if pool.start is None:
        return config.architecture
    if config.architecture not in (Architecture(), pool.start.architecture):
        raise ConfigError(
            f"architecture is {config.architecture}, the start's {pool.start.architecture}: leave it out"
        )
    return pool.start.architecture


def _build_generator(pool: Pool, config: ServerConfig, input: InputSpec) -> Generator:
    generator = Generator(
        latent_size=config.invert.latent_size,
        width=config.invert.generator_width,
        channels=input.channels,
        image_size=input.height,
    )
    use_channels_last(generator.to(pool.device, pool.dtype))
    return generator


def _projections(teachers: Sequence[Teachers]) -> list[nn.Linear]:
    return [each.projection for each in teachers if each.projection is not None]


def _zeroed_unless_owned(tensors: Mapping[str, Tensor], paths: Sequence[int]) -> Iterator[Tensor]:
    """The tensors of the paths' optimizers; zeros for the paths that other processes walk."""
    owned = {f"path{path}" for path in paths}
    for name, tensor in tensors.items():
        if name.startswith("path"):
            yield tensor if name.split(".")[0] in owned else tensor.zero_()
