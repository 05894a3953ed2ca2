"""The documents' examples, as their readers would take them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageColor

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str = "bash") -> list[str]:
    """A page's blocks of one language, in order.

    Args:
        page: its path from the root of the checkout.
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def environment(folder: Path) -> dict[str, str]:
    """Of a shell that has FedFREE's programs, and nothing of its user's.

    Args:
        folder: the user's home.
    """
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
        "HOME": str(folder),
        "FEDFREE_HOME": str(folder / "home"),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
    }


def draw(folder: Path, *, classes: int, images: int) -> Path:
    """Photos of one colour a class, with noise."""
    for number in range(classes):
        (folder / f"class-{number}").mkdir(parents=True)
        for image in range(images):
            noise = Image.effect_noise((48, 36), 60).convert("RGB")
            colour = Image.new(
                "RGB", noise.size, ImageColor.getrgb(f"hsl({360 * number // classes}, 90%, 50%)")
            )
            Image.blend(noise, colour, 0.6).save(folder / f"class-{number}" / f"{image}.jpg")
    return folder


class Page:
    """A page whose blocks are typed, each once, in an order and at places that its text tells.

    Args:
        name: of the page, from the root of the checkout.
        folder: where its reader is.
        changed: what stands for another thing in this test: ports, hosts, what makes a command short.
    """

    def __init__(self, name: str, folder: Path, changed: dict[str, str]) -> None:
        self.left, self.folder, self.changed = blocks(name), folder, changed
        self.environment = environment(folder)

    def block(self, beginning: str) -> str:
        """The next block that begins so, which is taken off :attr:`left`."""
        found = next(each for each in self.left if each.startswith(beginning))
        self.left.remove(found)
        for before, after in self.changed.items():
            found = found.replace(before, after)
        return found

    def run(self, script: str, where: Path | None = None) -> str:
        """All that a shell prints, which stops at the first command that fails."""
        ended = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{script}"],
            cwd=where or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ended.returncode == 0, f"{script}\n{ended.stdout[-3000:]}"
        return ended.stdout

    @contextmanager
    def running(self, script: str, where: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
        """A shell that stays, told to end (SIGTERM to all that it started) with the block."""
        process = subprocess.Popen(
            ["bash", "-c", f"set -euo pipefail\n{script}"],
            cwd=where or self.folder,
            env=self.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=90)
