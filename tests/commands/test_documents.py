"""Every command that the documents show exists, with every option that they give it."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

ROOT = Path(__file__).parents[2]
RECORDS = {"CHANGELOG.md", "results.md", "log.md"}
"""What was run once, with the options of its time."""
PAGES = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if page.name not in RECORDS]
PROGRAMS = {"fedfree-client": "client", "fedfree-server": "server", "fedfree-sim": "simulations"}
SHELL = re.compile(r"[|&;><()]|#(?= )")
"""Where a command ends, within a line of a shell."""


def shown(page: Path) -> Iterator[str]:
    """Commands of ours in a page's blocks, and between its backticks where they have an option."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    spans = re.findall(r"`([^`\n]+ --[^`\n]+)`", text)
    for line in [*"".join(re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)).splitlines(), *spans]:
        found = re.search(rf"\b({'|'.join(PROGRAMS)}) ", line)
        if found and line[found.end()] not in "…[":
            yield SHELL.split(line[found.start() :])[0].strip()


COMMANDS = sorted({(page.name, command) for page in PAGES for command in shown(page)})


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) > 60
    assert {name for name, _ in COMMANDS} > {"README.md", "tutorial.md", "deploy.md", "privacy.md"}


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
