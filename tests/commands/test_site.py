"""The documentation site: every page has its place, nothing in it is doubtful, and it needs no other host."""

import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"(?:https?:)?//[^\"]*\"")
LOADED_BY_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)\"']*")

pytest.importorskip("sphinx", reason="the site needs sphinx: pip install 'fedfree[docs]'")


def test_every_page_stands_in_the_contents_once() -> None:
    contents = runpy.run_path(str(ROOT / "docs" / "conf.py"))["CONTENTS"]
    listed = [re.sub(r".*<|>", "", page).lstrip("/") for pages in contents.values() for page in pages]
    pages = [page for pattern in ("*.md", "docs/*.md", "docs/*.ipynb") for page in ROOT.glob(pattern)]
    there = {str(page.relative_to(ROOT).with_suffix("")) for page in pages} - {"README"}
    assert len(listed) == len(set(listed)) and there <= set(listed)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as by `make docs`, in another folder."""
    pytest.importorskip("myst_nb", reason="the site needs myst-nb: pip install 'fedfree[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-W", "--keep-going", "--quiet", "-c", "docs", "-d"]
    ended = subprocess.run(
        [sys.executable, *command, folder / "doctrees", ".", folder / "html"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder / "html"


def test_it_is_built_without_a_warning_and_can_be_searched(site: Path) -> None:
    assert (site / "search.html").is_file() and "tutorial" in (site / "searchindex.js").read_text()
    assert 'url=README.html"' in (site / "index.html").read_text()


def test_it_loads_nothing_from_another_host(site: Path) -> None:
    pages, styles = [*site.rglob("*.html")], [*site.rglob("*.css")]
    assert len(pages) > 15 and styles
    assert not [found for page in pages for found in LOADS.findall(page.read_text())]
    assert not [found for style in styles for found in LOADED_BY_STYLE.findall(style.read_text())]
    for picture in site.rglob("*.svg"):
        links = [each.get("{http://www.w3.org/1999/xlink}href") or "#" for each in ET.parse(picture).iter()]
        assert all(link.startswith("#") for link in links), picture.name


def test_it_names_every_function_for_python_and_no_folder_of_this_machine(site: Path) -> None:
    reference = (site / "docs" / "reference.html").read_text()
    for name in ("client.api.contribute", "client.api.FewShotClassifier.none_of_these", "server.api.learn"):
        assert f'id="{name}"' in reference
    assert not [page.name for page in site.rglob("*.html") if str(ROOT) in page.read_text()]
