"""docs/api.md: its examples are one program, and it runs."""

import re
import subprocess
import sys
from pathlib import Path

from tests.pages import ROOT, blocks

HEADER = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'proto')!r}]\n"
EXAMPLES = blocks("docs/api.md", "python")


def test_the_first_example_is_short() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) < 30


def test_the_examples_run_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEADER + "".join(EXAMPLES))
    ended = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    accuracies = [float(each) for each in re.findall(r"^([\d.]+) ± [\d.]+ %$", ended.stdout, re.M)]
    assert len(accuracies) == 2 and min(accuracies) > 33, "better than chance"
    assert (tmp_path / "classifier.safetensors").is_file()
