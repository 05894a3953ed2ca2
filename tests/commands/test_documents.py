"""Commands and options that the documents show exist, and their links lead somewhere."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from tests.pages import ROOT, blocks

RECORDS = {"CHANGELOG.md", "results.md", "log.md"}
"""What was run once, with the options of its time."""
PAGES = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if page.name not in RECORDS]
PROGRAMS = {"fedfree-client": "client", "fedfree-server": "server", "fedfree-sim": "simulations"}
SHELL = re.compile(r"[|&;><()]|#(?= )")
"""Where a command ends, within a line of a shell."""


def shown(page: Path) -> Iterator[str]:
    """Commands of ours in a page's blocks, and between its backticks where they have an option."""
    typed, text = (
        re.sub(r"\\\n\s*", " ", each)
        for each in ("".join(blocks(str(page.relative_to(ROOT)))), page.read_text())
    )
    spans = re.findall(r"`([^`\n]+ --[^`\n]+)`", text)
    for line in [*typed.splitlines(), *spans]:
        found = re.search(rf"\b({'|'.join(PROGRAMS)}) ", line)
        if found and line[found.end()] not in "…[":
            yield SHELL.split(line[found.start() :])[0].strip()


COMMANDS = sorted({(page.name, command) for page in PAGES for command in shown(page)})


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) > 60
    assert {name for name, _ in COMMANDS} > {"README.md", "tutorial.md", "deploy.md", "privacy.md"}


def test_every_page_with_commands_is_typed_by_a_slow_test() -> None:
    """Of CONTRIBUTING.md the commands are what CI runs."""
    typed = "".join(
        (ROOT / "tests" / "end_to_end" / name).read_text() for name in ("test_pages.py", "test_tutorial.py")
    )
    for page in PAGES:
        shows = blocks(str(page.relative_to(ROOT)))
        assert not shows or f'"{page.relative_to(ROOT)}"' in typed or page.name == "CONTRIBUTING.md", page


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda part: part[:60])
def test_a_command_and_its_options_exist(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    found: click.Command = typer.main.get_command(
        importlib.import_module(f"{PROGRAMS[program]}.commands.main").app
    )
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        found = found.commands[words.pop(0)]
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= options | {"--help"}, f"{page}: {command}"


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name
)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in headings(found), target


def headings(page: Path) -> set[str]:
    """The anchors that a page has for whoever links to its headings, as a forge makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
