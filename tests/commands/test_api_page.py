"""docs/api.md: its examples are one program, and it runs."""

import re
import runpy
from pathlib import Path

import pytest

from tests.pages import blocks

EXAMPLES = blocks("docs/api.md", "python")


def test_the_first_example_is_short() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) < 30


def test_the_examples_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("".join(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("mine.py", run_name="__main__")
    accuracies = [float(each) for each in re.findall(r"^([\d.]+) ± [\d.]+ %$", capsys.readouterr().out, re.M)]
    assert len(accuracies) == 2 and min(accuracies) > 33, "better than chance"
    assert (tmp_path / "classifier.safetensors").is_file()
