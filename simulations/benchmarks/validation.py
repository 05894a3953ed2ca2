"""Few-shot accuracy on meta_val, on which every choice is made."""

from torch import Tensor

from client.adapting.adapt import SHOTS, episode_accuracies, sample_episodes
from client.data.images import ImageSet, to_input
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec
from fedfree.episodes import EpisodeSpec
from simulations.config import SimulationConfig
from simulations.federation.evaluate import load_split
from simulations.federation.prepare import find_domains


def load_validation(config: SimulationConfig) -> ImageSet:
    """meta_val of the first data set."""
    return load_split(find_domains(config)[0], "meta_val")


def few_shot(
    network: Classifier, input: InputSpec, images: ImageSet, config: SimulationConfig
) -> dict[str, Tensor]:
    """Fractions [episodes] by name of the episodes, nearest class mean; the network moves to the CPU."""
    specs = [EpisodeSpec(config.n_way, n_shot, config.n_query) for n_shot in SHOTS]
    sets = [sample_episodes(images.labels, spec, config.episodes, seed=config.seed) for spec in specs]
    inputs = to_input(images.images, input)
    fractions = episode_accuracies(network.float().cpu(), Recipe(), inputs, sets)
    return {spec.name: each for spec, each in zip(specs, fractions, strict=True)}
