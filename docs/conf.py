"""The documentation site, for sphinx: the pages as they lie here, and an order for them.

The repository is the source folder, so that a link that leads somewhere on a forge does so in the site too.
"""

import ast
import inspect
import textwrap
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
CONTENTS = {
    "Begin": ["docs/which", "docs/tutorial", "docs/tutorial-python", "docs/simulate"],
    "Across machines": ["docs/deploy", "docs/operate", "SECURITY", "docs/privacy"],
    "How it works": ["docs/method", "docs/architecture"],
    "What was measured": ["docs/results", "How they are kept </simulations/results/README>", "docs/log"],
    "Look up": ["docs/configuration", "docs/api", "docs/reference", "docs/extending"],
    "The project": ["CONTRIBUTING", "CHANGELOG"],
}
"""The pages beneath each heading beside every page; the README is the first page of all."""

project = "FedFREE"
version = release = PROJECT["version"]
copyright = "the FedFREE authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "simulations/results/README.md"]
exclude_patterns = [".*", "build", "dist", "runs"]
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["wide.css"]

myst_heading_anchors = 4
nb_execution_mode = "off"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "FedFREE"
html_additional_pages = {"index": "index.html"}
html_copy_source = False


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append to the first page, which a forge shows too, what sphinx orders the pages by."""
    if docname == root_doc:
        for caption, pages in CONTENTS.items():
            listed = "\n".join(page if "<" in page else f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def as_written(app: Sphinx, what: str, name: str, described: object, *_: object) -> tuple[str, str] | None:
    """A function's parameters and result in the words of its source, where a type is an alias or long."""
    if not inspect.isfunction(described):
        return None
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(described))).body
    assert isinstance(function, ast.FunctionDef)
    function.args.args = [each for each in function.args.args if each.arg != "self"]
    result = ast.unparse(function.returns).strip("'") if function.returns else ""
    return f"({ast.unparse(function.args)})", result


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-signature", as_written)
