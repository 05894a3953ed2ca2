"""docs/extending.md: its examples are one program, and it runs."""

import re
import subprocess
import sys
from pathlib import Path

from tests.pages import ROOT, blocks

HEADER = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'proto')!r}]\n"


def test_every_example_runs_after_the_ones_before_it(tmp_path: Path) -> None:
    examples = blocks("docs/extending.md", "python")
    tables = [re.findall(r"^([A-Z]+)(?:\[|\.append)", example, re.M) for example in examples]
    names = ("ARCHITECTURES", "HEADS", "INVERSIONS", "DATASETS", "BASELINES", "RULES", "ATTACKS")
    assert tables == [*([each] for each in names), []]
    (tmp_path / "mine.py").write_text(HEADER + "".join(examples))
    ended = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "median of the weights" in (tmp_path / "run" / "report.html").read_text()
    assert 'inversion = "ensemble"' in (tmp_path / "run" / "server.toml").read_text()
