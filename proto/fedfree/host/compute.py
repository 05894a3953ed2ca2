"""What both sides compute on: a device, threads, and an allocator that keeps what it has."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from fedfree.errors import ConfigError
from fedfree.settings import Settings

Device = Literal["auto", "cpu", "cuda"]

MOST_THREADS = 1024
"""Of many more the system makes none, and what torch computes with ends the process."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class ComputeConfig(Settings):
    """What a program computes on; results depend on it in the last bits."""

    device: Device = "auto"
    """``cuda``, ``cpu``, or ``auto``: a GPU where there is one."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    """CPU threads; by default as many as this process has CPUs, or OMP_NUM_THREADS."""


def count_threads(threads: int | None) -> int:
    """``threads``, or as many as this process may use: by OMP_NUM_THREADS, its affinity, and its quota."""
    if threads is not None:
        return threads
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].lstrip("0")
    if asked.isdecimal():
        return min(int(asked[:5]), MOST_THREADS)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, _quota() or usable))


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Whole CPUs that a container may use; None without a limit."""
    try:
        limit, period = file.read_text().split()
        return int(limit) // int(period)
    except (OSError, ValueError):  # no cgroup, or "max"
        return None


def use_cpu(threads: int | None) -> None:
    """Set torch's CPU threads (see :func:`count_threads`), and let glibc keep freed memory.

    By default glibc hands every large freed tensor back to the kernel and takes page faults for the
    next one, which halves the speed of small networks. Elsewhere than on glibc only the threads are set.
    """
    torch.set_num_threads(count_threads(threads))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(name: Device) -> torch.device:
    """``auto`` takes a GPU where there is one; raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch finds no GPU here: use auto or cpu")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def peak_memory() -> int:
    """Most bytes of memory that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
