"""Few-shot accuracy on meta_val, on which every choice is made."""

from torch import Tensor

from client.adapting.adapt import episode_accuracies, sample_episodes
from client.data.image_set import ImageSet, LazyInputs
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec
from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs, find_datasets


def load_validation(config: SimulationConfig) -> ImageSet:
    """meta_val of the first data set."""
    return find_datasets(config)[0].load("meta_val")


def few_shot(
    network: Classifier, input: InputSpec, images: ImageSet, config: SimulationConfig
) -> dict[str, Tensor]:
    """Fractions [episodes] by name of the episodes, nearest class mean; the network moves to the CPU."""
    specs = episode_specs(config)
    sets = [sample_episodes(images.labels, spec, config.episodes, seed=config.seed) for spec in specs]
    inputs = LazyInputs(images.images, input)
    fractions = episode_accuracies(network.float().cpu(), Recipe(), inputs, sets)
    return {spec.name: each for spec, each in zip(specs, fractions, strict=True)}
