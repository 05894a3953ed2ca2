"""docs/configuration.md says what the settings classes say, no more and no less."""

from fedfree.settings import leaves
from server.config import PRESETS, ServerConfig
from simulations.commands.reference import PAGE, PAGES, configuration_page
from simulations.reporting.facts import ROOT


def test_the_committed_page_is_what_the_settings_classes_say() -> None:
    assert (ROOT / PAGE).read_text() == configuration_page(), "run `fedfree-sim results write`"


def test_every_option_stands_on_the_page_with_a_line_of_help() -> None:
    page = configuration_page()
    for _, settings, elsewhere in PAGES:
        for leaf in leaves(settings):
            assert leaf.description, f"{settings.__name__}.{leaf.path} has no docstring"
            if not leaf.path.startswith(tuple(f"{name}." for name in elsewhere)):
                assert f"| `{leaf.path}` |" in page


def test_the_presets_differ_from_the_default_where_the_page_says() -> None:
    section = configuration_page().partition("## Presets")[2]
    for name, changes in PRESETS.items():
        if "iterations" in changes:
            assert f"`{ServerConfig.checked({'preset': name}).iterations}`" in section


def test_bounds_are_said_in_words() -> None:
    assert "| `clients` | `12` | Organisations. (at least 2 at most 10000) |" in configuration_page()
