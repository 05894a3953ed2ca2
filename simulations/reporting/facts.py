"""Where and with what something was measured: stated beside every number."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
"""Of the repository, in a clone."""
PACKAGES = ("fedfree", "torch", "torchvision", "flwr")


def hardware() -> dict[str, object]:
    """The processor, its cores, and the GPU with its driver or None."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpu": gpu, "driver": _driver() if gpu else None}


def versions() -> dict[str, str]:
    """Of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


@cache
def commit() -> str | None:
    """The abbreviated commit of these sources, ``-dirty`` where files differ; None outside a clone.

    As of the first call: what a process runs is what it found when it started.
    """
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str | None:
    """The version of NVIDIA's driver, where Linux tells it."""
    described = Path("/proc/driver/nvidia/version")
    return driver_version(described.read_text()) if described.exists() else None


def driver_version(described: str) -> str | None:
    """From what NVIDIA's kernel module says of itself."""
    found = re.search(r"Module\s.*?(\d+\.[\d.]+)", described)
    return found[1] if found else None
