"""CITATION.cff names the version that this is."""

from pathlib import Path

import fedfree

ROOT = Path(__file__).parents[2]


def test_the_citation_names_this_version_and_the_paper() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {fedfree.__version__}" in lines
    assert "        value: arXiv:2405.00984" in lines
