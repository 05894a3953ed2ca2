"""DP-SGD through Opacus: the gate, the plan, the noise and the accountant (Abadi et al. 2016).

Nothing here depends on a configured seed but the initial weights, which are drawn before any image is
seen. Opacus takes seconds to import and is imported only where it is needed.
"""

import functools
import itertools
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fedfree
from client.config import PrivacyConfig
from client.data.image_set import ImageSet, to_input
from client.training.fit import Untrained, augment
from client.training.layers import FrozenNorm, leave_what_no_layer_holds, separate_images
from client.training.observer import Observer, ignore
from fedfree.architectures import Classifier
from fedfree.codec import check_parameters_only
from fedfree.errors import ContributionError, PrivacyError
from fedfree.host.compute import Device, choose_device
from fedfree.low_rank import changed_weights
from fedfree.statement import MAX_NOISE_MULTIPLIER, DpSgd

ACCOUNTANT = "prv"
IMAGES_AT_ONCE = 128
"""Most images that a CPU goes through together; larger batches are gone through in parts."""
PIXELS_AT_ONCE, GPU_PIXELS_AT_ONCE = 2**18, 2**23
"""Pixels of the images that a CPU or a GPU holds together, with all that a network makes of them."""
GRADIENTS_AT_ONCE, GPU_GRADIENTS_AT_ONCE = 2**26, 2**28
"""Numbers in the gradients of the images that they hold together."""

_TWISTER_WORDS = 624
_TWISTER_STATE = slice(24, 24 + 8 * _TWISTER_WORDS)
"""Where torch keeps the words of its Mersenne twister within the state of a CPU generator."""


def os_entropy_generator() -> torch.Generator:
    """A CPU generator whose whole state comes from the operating system; seeding would use 32 bits of it."""
    generator = torch.Generator()
    words = np.frombuffer(os.urandom(4 * _TWISTER_WORDS), np.uint32).astype(np.uint64)
    state = generator.get_state()
    state[_TWISTER_STATE] = torch.from_numpy(words.view(np.uint8))
    return generator.set_state(state)


def noise_generator(device: torch.device, entropy: Callable[[], torch.Generator]) -> torch.Generator:
    """``entropy`` itself on a CPU; on a GPU, whose generators take no more, one keyed with 64 bits of it."""
    generator = entropy()
    if device.type == "cpu":
        return generator
    high, low = torch.randint(2**32, (2,), generator=generator).tolist()
    return torch.Generator(device).manual_seed(high << 32 | low)


def check_private(network: nn.Module) -> None:
    """Refuse a network that no DP-SGD can protect; Opacus itself misses norms without trainable parameters.

    Raises:
        PrivacyError: a layer that couples the images of a batch, or a buffer, by name and with the remedy.
    """
    try:
        check_parameters_only(network, type(network).__name__)
    except ContributionError as error:
        raise PrivacyError(str(error)) from error


@contextmanager
def trainable(untrained: Untrained) -> Iterator[None]:
    """The network as DP-SGD trains it: checked, and from a start without BatchNorms; undone at the end.

    Raises:
        PrivacyError: as :func:`check_private`.
    """
    if untrained.start:
        leave_what_no_layer_holds(untrained.network)
    with separate_images(untrained.network) if untrained.start else nullcontext():
        check_private(untrained.network)
        yield


def plan(num_images: int, privacy: PrivacyConfig, *, epochs: int) -> DpSgd:
    """The run that spends at most the configured ε; nothing is trained.

    Raises:
        PrivacyError: δ is not below one over the number of images, no noise reaches so small an ε, or batches
            are so small that Opacus rounds what it expects of them to no image.
    """
    if privacy.delta * num_images >= 1:
        raise PrivacyError(
            f"delta {privacy.delta:g} is not below 1/{num_images}, one over the number of images: "
            "a mechanism could publish one image in full and still keep the promise; use a smaller delta"
        )
    batches = math.ceil(num_images / privacy.batch_size)
    if not _expected_batch(num_images, 1 / batches):
        raise PrivacyError(
            f"batches of {privacy.batch_size} of {num_images} images would be divided by nothing: "
            "use a larger privacy.batch_size"
        )
    steps = epochs * batches
    try:
        noise = _noise_multiplier(privacy.epsilon, privacy.delta, 1 / batches, steps)
        return DpSgd(noise, 1 / batches, steps)
    except (ValueError, ArithmeticError, RuntimeError, ContributionError) as error:
        raise PrivacyError(_out_of_reach(privacy, 1 / batches, steps, error)) from error


def _expected_batch(num_images: int, sampling_rate: float) -> int:
    """Images that gradients and noise of a step are divided by; rounded down as Opacus does."""
    return int(num_images * sampling_rate)


def _out_of_reach(privacy: PrivacyConfig, sampling_rate: float, steps: int, error: Exception) -> str:
    """Why there is no plan, and the smallest ε for which there is one."""
    asked = f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} cannot be reached in {steps} steps"
    try:
        # Half of the largest: the search for a plan doubles the noise, and must find one below the largest.
        most = DpSgd(MAX_NOISE_MULTIPLIER / 2, sampling_rate, steps)
        smallest = math.ceil(1000 * composed_epsilon([most], privacy.delta)) / 1000
    except (ValueError, ArithmeticError, RuntimeError, ContributionError):
        smallest = 0.0
    if not smallest > 0 or privacy.epsilon >= smallest:
        return (
            f"{asked} ({error}): use another epsilon or delta, or other training.epochs or privacy.batch_size"
        )
    return (
        f"{asked} at sampling rate {sampling_rate:g}: the smallest that the accountant can show there is "
        f"{smallest:g}; use epsilon {smallest:g} or more, or fewer epochs or smaller batches"
    )


@functools.lru_cache
def _noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    with _opacus():
        from opacus.accountants.utils import get_noise_multiplier

        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sampling_rate,
                steps=steps,
                accountant=ACCOUNTANT,
            )
        )


def composed_epsilon(runs: Sequence[DpSgd], delta: float) -> float:
    """ε of several runs on the same images together: their privacy losses composed, not their ε added."""
    steps: Counter[tuple[float, float]] = Counter()
    for run in runs:
        steps[run.noise_multiplier, run.sampling_rate] += run.steps
    return _history_epsilon(tuple((*key, count) for key, count in sorted(steps.items())), delta)


@functools.lru_cache
def _history_epsilon(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    with _opacus():
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = list(history)
        return float(accountant.get_epsilon(delta))


@functools.cache
def software() -> str:
    """The releases that a statement rests on."""
    with _opacus():
        import opacus

    return f"fedfree {fedfree.__version__}, opacus {opacus.__version__}, torch {torch.__version__}"


def train_privately(
    untrained: Untrained,
    images: ImageSet,
    privacy: PrivacyConfig,
    run: DpSgd,
    *,
    crop_padding: int,
    device: Device = "cpu",
    entropy: Callable[[], torch.Generator] = os_entropy_generator,
    observe: Observer = ignore,
) -> float:
    """Train a network in place by DP-SGD with Poisson sampling, on all images, for the planned steps.

    The guarantee is for the parameters that are left at the end, per image, where neighbours differ by
    adding or removing one. Any ``entropy`` but the default voids it, and is there for tests alone.
    ``observe`` is told after every step, and learns nothing of the images.

    From a public start what is not trained stays the start's, running statistics first of all; the images
    that the start was learned from are covered by nothing here.

    Returns:
        ε spent, an upper bound; infinite where the guarantee is void.

    Raises:
        PrivacyError: the network couples images or holds buffers, the accountant saw another run, or what
            is the start's has changed.
    """
    network, spec = untrained.network.to(choose_device(device)), untrained.input
    augmentation = entropy()

    def prepare(pixels: Tensor) -> Tensor:
        augmented = augment(
            pixels, padding=crop_padding, horizontal_flip=spec.horizontal_flip, generator=augmentation
        )
        return to_input(augmented.to(network.device), spec)

    with untrained.low_rank.learning(network), trainable(untrained):
        average = [parameter.detach().clone() for parameter in network.parameters()]
        history: list[tuple[float, float, int]] = []
        done = 0
        for steps, its_privacy in _phases(network, privacy, run, len(images)):
            with dp_sgd(network, images, its_privacy, run, entropy, history) as (engine, optimizer, batches):
                for pixels, labels in itertools.islice(batches, steps):
                    take_step(network, optimizer, pixels, labels, privacy.augmentations, prepare)
                    _follow(average, network, min(privacy.averaging, (1 + done) / (10 + done)))
                    done += 1
                    observe("train", done, run.steps)
            history = engine.accountant.history
        _replace_parameters(network.eval(), average)
        check_private(network)
    network.cpu()
    if untrained.start:
        body, factors = untrained.start.body, untrained.low_rank.factors
        check_kept(network, {**body, **changed_weights(body, factors)})
    expected = [(run.noise_multiplier, run.sampling_rate, run.steps)]
    if history != expected:
        raise PrivacyError(f"planned {expected}, but the accountant saw {history}")
    with _opacus():
        spent = float(engine.get_epsilon(privacy.delta))
    return spent if entropy is os_entropy_generator else math.inf


def _phases(
    network: Classifier, privacy: PrivacyConfig, run: DpSgd, num_images: int
) -> Iterator[tuple[int, PrivacyConfig]]:
    """Let parts of the network learn, one after the other; yields for how many steps, and how.

    The head begins at zero and learns alone at first, where that is configured: its gradients are so much
    larger than all others that, clipped together, they would leave the others nothing (Mehta et al. 2022).
    """
    learning = [each for each in network.parameters() if each.requires_grad]
    head = set(network.head.parameters())
    alone = min(run.steps, privacy.head_epochs * round(1 / run.sampling_rate))
    of_the_head = privacy.model_copy(update={"learning_rate": privacy.head_learning_rate})
    rate = _learning_rate(privacy, run, run.steps - alone, num_images)
    privacy = privacy.model_copy(update={"learning_rate": rate})
    if alone:
        for parameter in head:
            nn.init.zeros_(parameter)
    if not alone or head.issuperset(learning):
        yield run.steps, of_the_head if alone else privacy
        return
    for is_head, steps, its_privacy in ((True, alone, of_the_head), (False, run.steps - alone, privacy)):
        for parameter in learning:
            parameter.requires_grad_((parameter in head) == is_head)
        yield steps, its_privacy
    for parameter in learning:
        parameter.requires_grad_(True)


def _learning_rate(privacy: PrivacyConfig, run: DpSgd, steps: int, num_images: int) -> float:
    """That at which the noise of ``steps`` adds up to ``parameter_noise``, or the one that was configured.

    Many organisations' noise cancels in their average and what they learn stays, so what each can bear by
    itself is less than what is best for all. An image moves the weights as far whatever their number.
    """
    if not privacy.parameter_noise or not steps:
        return privacy.learning_rate
    expected = _expected_batch(num_images, run.sampling_rate)
    at_rate_one = run.noise_multiplier * privacy.max_grad_norm / expected
    return privacy.parameter_noise / (at_rate_one * math.sqrt(steps))


def check_kept(network: nn.Module, body: Mapping[str, Tensor]) -> None:
    """Hold all that was not to be trained to ``body``, bit by bit; raises PrivacyError."""
    state = network.state_dict()
    trained = {name for name, each in network.named_parameters() if each.requires_grad}
    changed = [name for name in body.keys() - trained if not state[name].equal(body[name])]
    if changed:
        raise PrivacyError(
            f"training changed {min(changed)}, which is the start's and was not to be trained: what it tells "
            "of the images, no epsilon covers, and the model is not kept; report this"
        )


@contextmanager
def dp_sgd(
    network: Classifier,
    images: ImageSet,
    privacy: PrivacyConfig,
    run: DpSgd,
    entropy: Callable[[], torch.Generator],
    history: Sequence[tuple[float, float, int]] = (),
) -> Iterator[tuple[Any, Any, Iterator[tuple[Tensor, Tensor]]]]:
    """Opacus' engine and optimizer, and Poisson batches without end; the network is left without hooks.

    Args:
        history: of the accountant, which goes on from there.
    """
    with _opacus():
        from opacus import PrivacyEngine
        from opacus.grad_sample import register_grad_sampler

        register_grad_sampler(FrozenNorm)(FrozenNorm.gradients)
        engine = PrivacyEngine(accountant=ACCOUNTANT)
        engine.accountant.history = list(history)
        learning = [each for each in network.parameters() if each.requires_grad]
        hooks, optimizer, loader = engine.make_private(
            module=network.train(),
            optimizer=torch.optim.SGD(learning, lr=privacy.learning_rate),
            data_loader=DataLoader(
                TensorDataset(images.images, images.labels),
                batch_size=privacy.batch_size,
                generator=entropy(),
            ),
            noise_multiplier=run.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            grad_sample_mode="hooks",
            wrap_model=False,
            poisson_sampling=True,
            noise_generator=noise_generator(network.device, entropy),
        )
    try:
        with warnings.catch_warnings():
            # Images need no gradient, and the hooks of the first layer say so at every step.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            yield engine, optimizer, itertools.chain.from_iterable(itertools.repeat(loader))
    finally:
        hooks.cleanup()


def take_step(
    network: nn.Module,
    optimizer: Any,
    images: Tensor,
    labels: Tensor,
    augmentations: int = 1,
    prepare: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """One noisy step of Opacus' optimizer, in parts that fit into memory; also on a batch without images.

    Args:
        augmentations: views of an image, of whose gradients the mean is clipped (De et al. 2022).
        prepare: from images, each as often as it has views, to what the network takes.
    """
    device = next(network.parameters()).device
    at_once = max(1, _images_at_once(optimizer.params, images, device) // augmentations)
    parts = list(zip(images.split(at_once), labels.split(at_once), strict=True))
    for number, (some_images, some_labels) in enumerate(parts, start=1):
        optimizer.signal_skip_step(number < len(parts))
        if len(some_images):
            views = prepare(some_images.repeat_interleave(augmentations, 0))
            targets = some_labels.repeat_interleave(augmentations).to(device)
            F.cross_entropy(network(views), targets).backward()
        for each in optimizer.params:
            if not len(some_images):  # of which some layers can make no gradients
                each.grad_sample = each.new_zeros(0, *each.shape)
            elif augmentations > 1:
                each.grad_sample = each.grad_sample.unflatten(0, (-1, augmentations)).mean(1)
        optimizer.step()
        optimizer.zero_grad()


def _images_at_once(learning: Sequence[Tensor], images: Tensor, device: torch.device) -> int:
    """How many of the images, or views of them, fit into memory with their gradients."""
    pixels, numbers = images.shape[-2] * images.shape[-1], sum(each.numel() for each in learning)
    if device.type == "cpu":
        return min(IMAGES_AT_ONCE, GRADIENTS_AT_ONCE // numbers, PIXELS_AT_ONCE // pixels)
    return min(GPU_GRADIENTS_AT_ONCE // numbers, GPU_PIXELS_AT_ONCE // pixels)


@torch.no_grad()
def _follow(average: list[Tensor], network: nn.Module, decay: float) -> None:
    for mean, parameter in zip(average, network.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)


@torch.no_grad()
def _replace_parameters(network: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.copy_(value)


@contextmanager
def _opacus() -> Iterator[None]:
    """Let Opacus be imported and called without the root log handler and the warnings it brings.

    What it warns of, that the generator is not cryptographic, is in every statement.
    """
    level, handlers = logging.root.level, logging.root.handlers[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
