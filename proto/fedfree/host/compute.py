"""What both sides compute on: a device, threads, and an allocator that keeps what it has."""

import ctypes
from typing import Literal

import torch

from fedfree.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def use_cpu(threads: int) -> None:
    """Set torch's CPU threads, and let glibc keep freed memory.

    By default glibc hands every large freed tensor back to the kernel and takes page faults for the
    next one, which halves the speed of small networks. Elsewhere than on glibc only the threads are set.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(name: Device) -> torch.device:
    """``auto`` takes a GPU where there is one; raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch finds no GPU here: use auto or cpu")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")
