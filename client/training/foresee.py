"""How long a training would take on this machine, and in how much memory: a few of its steps, timed."""

import math
import shutil
import time
from dataclasses import dataclass, field, replace

import torch

from client.config import ClientConfig
from client.data.image_set import ImageSet
from client.data.look import Look
from client.data.room import IN_MEMORY
from client.training.fit import course, fit, held_out, initialise, read_start
from client.training.pretrain import announcement, private_announcement
from client.training.privacy import IMAGES_AT_ONCE, plan, train_privately, trainable
from fedfree.host.compute import peak_memory, use_cpu
from fedfree.host.places import cache_folder
from fedfree.seeding import make_generator
from fedfree.statement import DpSgd

TIMED_STEPS = 3
"""Of which the first, in which memory is asked for, does not count."""


@dataclass(frozen=True)
class Foresight:
    """What a training would be, on this machine."""

    plan: str
    """What the training will say that it does."""
    steps: int
    held_out: int
    """Images that it is measured on; none under differential privacy."""
    seconds: float
    """All steps, estimated from a few."""
    memory: int
    """Bytes: the most that the timed steps held, and room for the pixels."""
    disk: int
    """Bytes of pixels that go into files in the cache folder, because they are too many for memory."""
    disk_free: int


@dataclass
class _Clock:
    """An observer that knows when each step was done."""

    times: list[float] = field(default_factory=list)

    def __call__(self, what: str, done: int, of: int) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds_a_step(self) -> float:
        return (self.times[-1] - self.times[-TIMED_STEPS]) / (TIMED_STEPS - 1)


def foresee(found: Look, config: ClientConfig) -> Foresight:
    """Time a few steps of the training that a configuration asks for, on noise instead of the images.

    Raises:
        DataError, ConfigError, ContributionError, PrivacyError, StorageError: as the training itself would
            refuse these images or settings, before it trains.
    """
    read_start(config.training)
    images = _stand_in(found)
    of_kind = _foresee_privately if config.privacy.is_dp else _foresee
    words, steps, held, seconds = of_kind(images, config, is_coloured=_is_coloured(found))
    rooms = _rooms(len(images), held, found.channels * found.size**2)
    disk = sum(room for room in rooms if room > IN_MEMORY)
    return Foresight(
        plan=words,
        steps=steps,
        held_out=held,
        seconds=seconds,
        memory=peak_memory() + sum(min(room, IN_MEMORY) for room in rooms),
        disk=disk,
        disk_free=_free(),
    )


def _rooms(images: int, held: int, pixels: int) -> list[int]:
    """Bytes of the tensors of pixels held together: all images, and both parts where some are held out."""
    counts = [images, images - held, held] if held else [images]
    return [count * pixels for count in counts]


def _free() -> int:
    folder = cache_folder()
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.is_dir())).free


def _is_coloured(found: Look) -> bool:
    return found.channels == 3 and found.grey < found.images


def _stand_in(found: Look) -> ImageSet:
    """As many images of each class as were read, all one and the same black one in memory."""
    counts = torch.tensor([each.images for each in found.classes], dtype=torch.int64)
    pixels = torch.zeros(1, found.channels, found.size, found.size, dtype=torch.uint8)
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    names = tuple(each.name for each in found.classes)
    return ImageSet(pixels.expand(found.images, -1, -1, -1), labels, names)


def _noise(like: ImageSet, count: int, *, is_coloured: bool) -> ImageSet:
    """So many images of random pixels, in the shape and with the classes of others."""
    _, channels, height, width = like.images.shape
    generator = make_generator(0, "noise to time a training with")
    drawn = channels if is_coloured else 1
    pixels = torch.randint(256, (count, drawn, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % like.num_classes
    return ImageSet(pixels.expand(-1, channels, -1, -1), labels, like.class_names)


def _foresee(images: ImageSet, config: ClientConfig, *, is_coloured: bool) -> tuple[str, int, int, float]:
    words, training = announcement(config, images), config.training
    held = int(held_out(images, training, seed=config.seed).sum())
    planned = course(len(images) - held, training)
    batch = math.ceil((len(images) - held) / planned.batches)
    few = {"epochs": 1, "min_steps": TIMED_STEPS, "batch_size": batch, "held_out_fraction": 1e-9}
    clock = _Clock()
    noise = _noise(images, batch + 1, is_coloured=is_coloured)
    noise = replace(noise, labels=torch.zeros_like(noise.labels))
    fit(noise, training.model_copy(update=few), seed=config.seed, observe=clock)
    return words, planned.steps, held, planned.steps * clock.seconds_a_step


def _foresee_privately(
    images: ImageSet, config: ClientConfig, *, is_coloured: bool
) -> tuple[str, int, int, float]:
    """Parts of a batch are gone through one after the other, so one part tells of all."""
    training, privacy = config.training, config.privacy
    use_cpu(training.threads)
    batch = min(len(images), privacy.batch_size)
    timed = min(batch, IMAGES_AT_ONCE // privacy.augmentations or 1)
    noise = _noise(images, timed, is_coloured=is_coloured)
    untrained = initialise(noise, training, seed=config.seed)
    with trainable(untrained):
        pass
    run = plan(len(images), privacy, epochs=training.epochs)
    clock = _Clock()
    train_privately(
        untrained,
        noise,
        privacy.model_copy(update={"head_epochs": 0}),
        DpSgd(run.noise_multiplier, 1.0, TIMED_STEPS),
        crop_padding=training.crop_padding,
        device=training.device,
        observe=clock,
    )
    return (
        private_announcement(config, images, run),
        run.steps,
        0,
        run.steps * clock.seconds_a_step * batch / timed,
    )
