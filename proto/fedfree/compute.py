"""How both sides use a CPU: threads, and an allocator that keeps what it has."""

import ctypes

import torch

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
