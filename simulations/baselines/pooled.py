"""One network on everybody's images: a reference, possible only where one machine plays all organisations."""

from collections.abc import Sequence

from client.config import ClientConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.training.cache import begun_from, training_key, without_paths
from client.training.fit import course, fit, initialise
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import encode_weights, fill_network, read_tensors
from fedfree.host.files import read_file, write_file
from fedfree.host.options import given_values
from fedfree.seeding import derive_seed
from simulations.config import SimulationConfig
from simulations.federation.prepare import load_own

WHAT = "the network on everybody's images"


def train_pooled(
    organisations: Sequence[ClientConfig], config: SimulationConfig
) -> tuple[Classifier, InputSpec]:
    """A network trained as each organisation trained, without privacy, on all their images together.

    It passes over them as often as an organisation does over its own. Where it was trained before, it is
    taken from the cache; of several architectures the first one trains.

    Args:
        organisations: those of one data set.
    """
    training, seed = _training(organisations[0].training, config), derive_seed(config.seed, "pooled data")
    images = load_together(organisations)
    training = pooled_course(training, len(images) // len(organisations))
    begun = initialise(images, training, seed=seed)
    key = training_key(images, f"{without_paths(training).sha256()} {begun_from(training)}", seed=seed)
    file = config.cache / "pooled" / f"{key}.safetensors"
    if not file.exists():
        write_file(file, encode_weights(fit(images, training, seed=seed).network))
    fill_network(begun.network, read_tensors(read_file(file), WHAT), WHAT)
    return begun.network.eval(), begun.input


def pooled_course(training: TrainingConfig, images_each: int) -> TrainingConfig:
    """As long as an organisation with so many images trains, in passes over them."""
    return training.model_copy(update={"epochs": course(images_each, training).epochs})


def load_together(organisations: Sequence[ClientConfig]) -> ImageSet:
    """The images of organisations of one data set; a class that several have is one class."""
    first, *_ = organisations
    classes = sorted({name for each in organisations for name in each.data.classes or ()})
    data = first.data.model_copy(update={"classes": tuple(classes)})
    return load_own(first.model_copy(update={"data": data}))


def _training(own: TrainingConfig, config: SimulationConfig) -> TrainingConfig:
    """How an organisation trains; what differential privacy changed of it, it does not change here."""
    if not config.privacy.is_dp:
        return own
    values = {name: each for name, each in given_values(config).items() if name != "privacy"}
    plain = SimulationConfig.checked(values).training
    places = ("architecture", "image_size", "initial_weights", "initial_weights_public", "start")
    return plain.model_copy(update={name: getattr(own, name) for name in places})
