"""docs/tutorial.md and README.md: their blocks, in an empty folder, as a person would type them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedfree.host.flower_process import free_port
from tests.pages import ROOT, blocks, draw, environment

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = blocks("docs/tutorial.md")
README = blocks("README.md")
PORT = "9443"


def walk(typed: list[str], folder: Path) -> str:
    """All that one shell prints that runs these blocks, and stops at the first command that fails."""
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(typed)
    ended = subprocess.run(
        ["bash", "-c", script.replace(PORT, str(free_port()))],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    return ended.stdout


@pytest.mark.slow
def test_looking_at_the_photos_tells_what_a_telephone_did_to_them_as_the_page_shows(tmp_path: Path) -> None:
    (last,) = [index for index, block in enumerate(BLOCKS) if block.startswith("rm ")]
    said = walk(BLOCKS[: last + 1], tmp_path)
    before, after = said.split("error: pretrain refuses a set with images that cannot be read: 1 here")
    assert "195 images of 8 classes" in before and "193 images" not in before
    assert "broken.jpg (image file is truncated" in before and "HEIC photos are not read" in before
    words = " ".join(before.split())
    assert "labels contradict each other: meta_train/star/03.jpg = meta_train/sun/twice.jpg" in words
    assert "as their EXIF tag says: 1" in words
    assert "194 images of 8 classes" in after and "yes: every class has 20 images or more" in " ".join(
        after.split()
    )
    shown = [line[4:] for line in PAGE.splitlines() if re.match(r"    (│|training sees)", line)]
    printed = {line.rstrip() for line in before.splitlines()}
    assert len(shown) >= 9 and printed.issuperset(shown)


@pytest.mark.slow
def test_the_whole_page_ends_in_predictions(tmp_path: Path) -> None:
    said = walk(BLOCKS, tmp_path)
    for name in ("synthetic.png", "report.html", "result.json", "events.jsonl", "config.toml"):
        assert (tmp_path / "runs" / "mine" / name).is_file(), name
    assert said.count("wrote classifier.safetensors") == 2
    predicted = re.findall(r"meta_test/(\w+)/1\d\.jpg +(gear|needle|none of these)", said)
    assert len(predicted) >= 40
    assert "1 of the 2 contributions there are yours" in said


@pytest.mark.slow
def test_the_three_uses_of_the_readme_end_well(tmp_path: Path) -> None:
    for organisation, classes, images in (("north", 3, 20), ("south", 4, 20), ("east", 3, 40)):
        draw(tmp_path / "images" / organisation, classes=classes, images=images)
    draw(tmp_path / "new-classes", classes=2, images=1)
    shutil.copy(tmp_path / "new-classes" / "class-1" / "0.jpg", tmp_path / "photo.jpg")
    assert len(README) == 3
    # On a port of the test's own: README's server listens on the one that is preset.
    said = walk(
        [block.replace("--insecure &", f"--insecure --listen 127.0.0.1:{PORT} &") for block in README],
        tmp_path,
    )
    assert "nothing was run" in said or "would" in said
    assert "runs/mine" in said and "listening on" in said
    assert "wrote classifier.safetensors" in said and "photo.jpg" in said
    assert "differential" in said
