"""Training the classifier that an organisation contributes."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.config import TrainingConfig, or_if_colour
from client.data.image_set import ImageSet, choose_held_out, is_coloured, split_held_out, to_input
from client.training.low_rank import LowRank, check_low_rank
from client.training.observer import Observer, ignore
from client.training.scope import train_only
from fedfree.adaptation import FEATURE_BATCH
from fedfree.architectures import Classifier, InputSpec, build, freeze_statistics, use_channels_last
from fedfree.codec import fill_network, read_tensors
from fedfree.errors import ConfigError
from fedfree.host.compute import choose_device, use_cpu
from fedfree.host.files import read_file
from fedfree.host.starts import load_start
from fedfree.seeding import derive_seed, make_generator
from fedfree.start import LoadedStart, fill_body

log = logging.getLogger(__name__)

PIXELS_AT_ONCE = 16 * 128 * 128
"""A batch of larger images goes through a network of frozen statistics in parts of so many pixels: no image
there depends on another, so the step is the same, in less memory."""


@dataclass(frozen=True)
class Untrained:
    """A classifier that has seen no private image."""

    network: Classifier
    input: InputSpec
    start: LoadedStart | None = None
    """What its body is, where it begins from a public start."""
    low_rank: LowRank = field(default_factory=LowRank)
    """What training may do to its linear layers, and has done."""


@dataclass(frozen=True)
class Fitted:
    """A trained classifier and how well it does on images it was not trained on."""

    network: Classifier
    input: InputSpec
    start: LoadedStart | None
    held_out_accuracy: float
    """Fraction in [0, 1]; stays with the organisation."""
    low_rank: LowRank
    """What training has done to its linear layers."""


@dataclass(frozen=True)
class Course:
    """How long a training goes on."""

    epochs: int
    """Passes over the images that are really made."""
    batches: int
    """An epoch."""

    @property
    def steps(self) -> int:
        return self.epochs * self.batches


def course(num_images: int, config: TrainingConfig) -> Course:
    """As many epochs as asked for, or as ``min_steps`` takes where that is more."""
    batches = max(1, num_images // config.batch_size)
    return Course(max(config.epochs, math.ceil(config.min_steps / batches)), batches)


def fit(images: ImageSet, config: TrainingConfig, *, seed: int, observe: Observer = ignore) -> Fitted:
    """Train a classifier on private images.

    Args:
        images: uint8 [images, channels, image_size, image_size].
        observe: told after every step how many are done.
    """
    use_cpu(config.threads)
    untrained = initialise(images, config, seed=seed)
    device = choose_device(config.device)
    network, spec = untrained.network.to(device), untrained.input
    training, held_out = hold_out(images, config, seed=seed)
    with untrained.low_rank.learning(network):
        _descend(untrained, training, config, make_generator(seed, "training"), observe)
    accuracy = _accuracy(network, held_out, spec)
    log.info("trained %s on %d images, held-out accuracy %.3f", config.architecture, len(training), accuracy)
    return Fitted(network.cpu(), spec, untrained.start, accuracy, untrained.low_rank)


def hold_out(images: ImageSet, config: TrainingConfig, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """What is trained on, and what accuracy is measured on; raises as :func:`split_held_out`."""
    return split_held_out(
        images, fraction=config.held_out_fraction, generator=make_generator(seed, "held-out")
    )


def held_out(images: ImageSet, config: TrainingConfig, *, seed: int) -> Tensor:
    """Which of the images :func:`hold_out` holds out, [images] bool, without a copy; raises DataError."""
    return choose_held_out(
        images, fraction=config.held_out_fraction, generator=make_generator(seed, "held-out")
    )


def initialise(images: ImageSet, config: TrainingConfig, *, seed: int) -> Untrained:
    """The classifier before training; of the images only their shape, colours and classes are looked at.

    Raises:
        ConfigError: initial weights that cannot be read, or a start that is contradicted.
        ContributionError: initial weights of another architecture, or a damaged start.
    """
    start = read_start(config)
    mirrored = or_if_colour(config.horizontal_flip, 3 if is_coloured(images.images) else 1)
    size, channels = config.image_size, images.images.shape[1]
    spec = InputSpec(channels, size, size) if start is None else start.start.input
    spec = replace(spec, horizontal_flip=mirrored)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initialisation"))
        network = build(config.architecture, num_classes=images.num_classes, input=spec)
    if start is not None:
        fill_body(network, start.body, str(config.architecture))
        train_only(network, config.trained)
    low_rank = LowRank(config.low_rank if config.trained == "low-rank" else 0, seed)
    if config.initial_weights:
        _load_initial(network, read_file(config.initial_weights), str(config.architecture))
    return Untrained(network, spec, start, low_rank)


def read_start(config: TrainingConfig) -> LoadedStart | None:
    """The start that training begins from, checked; None where it begins from random or initial weights.

    Raises:
        StorageError, ContributionError: a start that is missing, cut off or was changed.
        ConfigError: settings that contradict it, or need one.
    """
    if config.start is None:
        if config.trained != "all":
            raise ConfigError(f"training.trained {config.trained} needs a start: set training.start")
        return None
    if config.initial_weights:
        raise ConfigError("training begins from a start or from initial weights: set one of them")
    start = load_start(config.start)
    for name, own, its in (
        ("architecture", config.architecture, start.start.architecture),
        ("image_size", config.image_size, start.start.input.height),
    ):
        if own != its:
            raise ConfigError(f"training.{name} is {own}, and the start's is {its}: leave it out")
    if config.trained == "low-rank":
        network = build(config.architecture, num_classes=2, input=start.start.input)
        check_low_rank(network, config.low_rank, str(config.architecture))
    return start


def _load_initial(network: Classifier, weights: bytes, what: str) -> None:
    """Fill a network, but for a head of another number of classes."""
    tensors = read_tensors(weights, "the initial weights")
    own = network.state_dict()
    for name in own:
        if name.startswith("head.") and name in tensors and tensors[name].shape != own[name].shape:
            tensors[name] = own[name]
    fill_network(network, tensors, f"{what}, to begin from,")


def _descend(
    untrained: Untrained,
    training: ImageSet,
    config: TrainingConfig,
    generator: torch.Generator,
    observe: Observer,
) -> None:
    network, spec = untrained.network, untrained.input
    use_channels_last(network.train())
    if untrained.start:
        freeze_statistics(network)
    device = network.device
    wanted = _wants_turns(config, training, untrained.start)
    with_turns = _turned_loss if untrained.start else _joint_loss
    turns = _zeros(network.feature_size, 4 * training.num_classes).to(device) if wanted else None
    learned = [each for each in network.parameters() if each.requires_grad]
    optimizer = _optimizer([*learned, *(turns.parameters() if turns else ())], config)
    planned = course(len(training), config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=planned.steps
    )

    def loss_of(inputs: Tensor, labels: Tensor) -> Tensor:
        if turns is None:
            return F.cross_entropy(network(inputs), labels)
        return with_turns(network, turns, inputs, labels, generator)

    done = 0
    observe("train", done, planned.steps)
    for _ in range(planned.epochs):
        order = torch.randperm(len(training), generator=generator)
        for batch in order.tensor_split(planned.batches):
            pixels = augment(
                training.images[batch],
                padding=config.crop_padding,
                horizontal_flip=spec.horizontal_flip,
                generator=generator,
            )
            inputs = to_input(pixels.to(device), spec).contiguous(memory_format=torch.channels_last)
            labels = training.labels[batch].to(device)
            optimizer.zero_grad()
            _backward(loss_of, inputs, labels, parts=_parts(inputs) if untrained.start else 1)
            optimizer.step()
            schedule.step()
            done += 1
            observe("train", done, planned.steps)
    if turns is not None and untrained.start:
        _take_upright(network.head, turns)
    network.eval()


def _parts(inputs: Tensor) -> int:
    return math.ceil(inputs[:, 0].numel() / PIXELS_AT_ONCE)


def _backward(
    loss_of: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, labels: Tensor, *, parts: int
) -> None:
    """Add the gradient of the mean loss, a part of the batch after the other."""
    for some, of_these in zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True):
        (loss_of(some, of_these) * (len(some) / len(inputs))).backward()


def _wants_turns(config: TrainingConfig, training: ImageSet, start: LoadedStart | None) -> bool:
    if config.rotation_task is None and start:
        return True
    return or_if_colour(config.rotation_task, 3 if is_coloured(training.images) else 1)


def _optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _joint_loss(
    network: Classifier, turns: nn.Linear, inputs: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of the class, and of class and quarter turn of a turned copy of each image.

    The joint labels are those of self-supervised label augmentation (Lee, Hwang and Shin, ICML 2020).
    """
    turned, quarters = turn(inputs, generator=generator)
    upright, turned = network.features(torch.cat([inputs, turned])).split(len(inputs))
    joint: Tensor = F.cross_entropy(turns(turned), 4 * labels + quarters)
    return joint + F.cross_entropy(network.head(upright), labels)


def _turned_loss(
    network: Classifier, turns: nn.Linear, inputs: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of class and quarter turn of the images, each turned at random."""
    turned, quarters = turn(inputs, generator=generator)
    return F.cross_entropy(turns(network.features(turned)), 4 * labels + quarters)


@torch.no_grad()
def _take_upright(head: nn.Module, turns: nn.Linear) -> None:
    """Let the head be what tells the classes of images that are not turned."""
    assert isinstance(head, nn.Linear)
    head.weight.copy_(turns.weight[::4])
    head.bias.copy_(turns.bias[::4])


def turn(images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each of the square images [batch, channels, side, side] turned by 0 to 3 quarters, and the quarters."""
    quarters = torch.randint(4, (len(images),), generator=generator).to(images.device)
    turned = torch.empty_like(images)
    for quarter in range(4):
        chosen = quarters == quarter
        turned[chosen] = images[chosen].rot90(quarter, (2, 3))
    return turned, quarters


@torch.no_grad()
def _accuracy(network: Classifier, images: ImageSet, spec: InputSpec) -> float:
    correct = 0
    for pixels, labels in zip(
        images.images.split(FEATURE_BATCH), images.labels.split(FEATURE_BATCH), strict=True
    ):
        predicted = network(to_input(pixels.to(network.device), spec)).argmax(1)
        correct += int((predicted.cpu() == labels).sum())
    return correct / len(images)


def augment(images: Tensor, *, padding: int, horizontal_flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop after reflection padding, and a random mirror where allowed, image by image.

    Args:
        images: [batch, channels, height, width], any dtype.

    Returns:
        A tensor of the same shape.
    """
    batch, _, height, width = images.shape
    rows = torch.randint(-padding, padding + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(-padding, padding + 1, (batch, 1), generator=generator) + torch.arange(width)
    if horizontal_flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    images = images.gather(2, rows[:, None, :, None].expand(-1, images.shape[1], -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, images.shape[1], height, -1))


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
