"""Times, operations and shares of work, measured alternately so that a noisy machine falls on everything."""

import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from server.learning.precision import autocast

Work = Callable[[], object]

PEAK_BATCH, PEAK_CHANNELS, PEAK_SIZE = {"cpu": 16, "cuda": 512}, 256, 56
"""Of the plain large convolution that stands for what the machine can do."""

COPIED = {"cpu": 1 << 28, "cuda": 1 << 32}
"""Bytes of a tensor that no cache holds."""

KINDS = {
    "convolution": ("conv",),
    "pooling and upsampling": ("pool", "upsample"),
    "normalisation": ("norm",),
    "optimizer": ("_foreach", "addcdiv", "addcmul", "lerp", "adam"),
    "matrix products": ("mm", "linear"),
    "copies and formats": ("copy", "aten::to", "clone", "contiguous", "fill_", "zero_", "empty", "pad"),
    "sums and means": ("sum", "mean"),
}
"""Words in the profiler's names of operations, by kind of work; the first that matches counts."""


def seconds(work: Work, device: torch.device) -> float:
    """Wall time of one call, with what it left running on a GPU."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(works: Sequence[Work], device: torch.device, *, repeats: int) -> list[float]:
    """Median seconds of each, called in turn; a first round warms up and is not counted."""
    rounds = [[seconds(work, device) for work in works] for _ in range(repeats + 1)]
    return [median(times) for times in zip(*rounds[1:], strict=True)]


def operations(work: Work) -> int:
    """Floating-point operations of one call; convolutions and matrix products alone are counted."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, and only benchmarks need it

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak(device: torch.device, precision: str, *, repeats: int = 9) -> float:
    """Operations a second of a plain large 3x3 convolution, forward, in a number format; the best of some."""
    images = torch.rand(PEAK_BATCH[device.type], PEAK_CHANNELS, PEAK_SIZE, PEAK_SIZE, device=device)
    weights = torch.rand(PEAK_CHANNELS, PEAK_CHANNELS, 3, 3, device=device)
    images, weights = (each.contiguous(memory_format=torch.channels_last) for each in (images, weights))

    @torch.no_grad()
    def work() -> None:
        with autocast(precision, device):
            torch.nn.functional.conv2d(images, weights, padding=1)

    return operations(work) / min(seconds(work, device) for _ in range(repeats))


class BytesMoved(TorchDispatchMode):
    """Counts the bytes of the tensors that operations take and give; a view moves none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(map(_bytes, tree_leaves((args, kwargs, result))))
        return result


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def bytes_moved(work: Work) -> int:
    """Bytes that one call's operations read and write, from the shapes of their tensors."""
    counter = BytesMoved()
    with counter:
        work()
    return counter.total


def bandwidth(device: torch.device, *, repeats: int = 9) -> float:
    """Bytes a second that a plain copy of a large tensor reads and writes; the best of some."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / min(seconds(lambda: target.copy_(source), device) for _ in range(repeats))


def time_shares(work: Work, device: torch.device) -> dict[str, float]:
    """Share of the time of each kind of work, the largest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler calls a machine without a GPU an error
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[kind_of(event.key)] = times.get(kind_of(event.key), 0.0) + took
    total = sum(times.values())
    return {kind: times[kind] / total for kind in sorted(times, key=times.__getitem__, reverse=True)}


def kind_of(operation: str) -> str:
    """What kind of work an operation of the profiler is."""
    name = operation.lower()
    matches = (kind for kind, words in KINDS.items() if any(word in name for word in words))
    return next(matches, "elementwise and other")
