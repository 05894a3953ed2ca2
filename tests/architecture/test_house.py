"""Every room says what it is for, and docs/architecture.md says the same."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(
    path.parent
    for top in ("proto/fedfree", "server", "client", "simulations")
    for path in (ROOT / top).rglob("__init__.py")
)
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows_of(heading: str) -> dict[str, str]:
    """First cell to second of the table beneath a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    _, _, *rows = [line for line in section.splitlines() if line.startswith("| ")]
    return {cells[1]: cells[2] for cells in (re.split(r"\s*\|\s*", row) for row in rows)}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_in_one_sentence_what_it_is_for(room: Path) -> None:
    purpose = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert purpose and re.fullmatch(r"(?:(?!\. )[^\n])+\.", purpose), purpose


def test_the_page_lists_every_room_with_its_own_sentence() -> None:
    said = {
        f"`{room.relative_to(ROOT)}/`": str(ast.get_docstring(ast.parse((room / "__init__.py").read_text())))
        for room in ROOMS
    }
    assert rows_of("The rooms") == {room: purpose.replace("``", "`") for room, purpose in said.items()}


def test_the_page_names_no_file_that_is_not_there() -> None:
    named = set(re.findall(r"`((?:client|server|simulations|tests|proto)/[\w./]*)`", PAGE))
    assert named and all((ROOT / each).exists() for each in named), named


def test_the_glossary_is_short() -> None:
    assert 15 <= len(rows_of("Words")) <= 25
