"""Few-shot accuracy on meta_val, on which every choice is made."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from client.adapting.adapt import episode_accuracies, sample_episodes
from client.data.image_set import ImageSet, LazyInputs
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec
from fedfree.episodes import Episode
from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs, find_datasets


def load_validation(config: SimulationConfig, *, images_per_class: int | None = None) -> ImageSet:
    """meta_val of the first data set: all, or so many images of each class."""
    return find_datasets(config)[0].load("meta_val", images_per_class=images_per_class)


def validation_episodes(images: ImageSet, config: SimulationConfig) -> Mapping[str, Sequence[Episode]]:
    """The episodes by their name; the same whatever is measured on them."""
    return {
        spec.name: sample_episodes(images.labels, spec, config.episodes, seed=config.seed)
        for spec in episode_specs(config)
    }


def few_shot(
    network: Classifier, input: InputSpec, images: ImageSet, config: SimulationConfig
) -> dict[str, Tensor]:
    """Fractions [episodes] by name of the episodes, nearest class mean; the network moves to the CPU."""
    sets = validation_episodes(images, config)
    inputs = LazyInputs(images.images, input)
    fractions = episode_accuracies(network.float().cpu(), Recipe(), inputs, list(sets.values()))
    return dict(zip(sets, fractions, strict=True))
