"""Settings: what is declared once is validated, read, written, described and layered from there."""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from fedfree.errors import ConfigError
from fedfree.settings import (
    REQUIRED,
    Layer,
    Listed,
    Settings,
    Values,
    leaves,
    merge,
    nested,
    value_at,
)


class Inner(Settings):
    """A table."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the images.

    More of it follows here.
    """
    rate: float = math.inf
    """Of something."""


class Outer(Settings):
    """Everything."""

    source: Path
    """Where it is."""
    kind: Literal["plain", "fast"] = "plain"
    """Brings its own epochs."""
    sizes: Annotated[tuple[int, ...], Listed] = ()
    """One or more."""
    training: Inner = Inner(epochs=7)
    """How."""

    @classmethod
    def implied(cls, given: Values) -> Layer:
        is_fast = value_at(given, "kind") == "fast"
        return Layer("fast", nested("training.epochs", 1) if is_fast else {})


def test_an_empty_path_is_not_the_working_directory_nor_the_folder_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text('source = ""\n')
    with pytest.raises(ConfigError, match="source: names no file or folder"):
        Outer.read(tmp_path / "empty.toml")
    assert Outer.checked({"source": "."}).source == Path()


def test_a_home_that_no_shell_put_in_place_is_refused_with_the_path_that_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(ConfigError, match=r"source: names '~/x', .*: write /home/somebody/x"):
        Outer.checked({"source": "~/x"})
    assert Outer.checked({"source": "a~/x"}).source == Path("a~/x")


def test_an_option_whose_default_cannot_be_made_here_is_described_without_one() -> None:
    def homeless() -> Path:
        raise ConfigError("no home")

    class Cached(Settings):
        cache: Path = Field(default_factory=homeless)

    assert [leaf.default for leaf in leaves(Cached)] == [None]
    with pytest.raises(ConfigError, match="no home"):
        Cached.checked({})


def test_a_path_that_is_no_characters_is_refused_by_name_where_toml_is_written() -> None:
    settings = Outer(source=Path(os.fsdecode(b"images-\xff")))
    for write in (settings.to_toml, settings.to_commented_toml):
        with pytest.raises(ConfigError, match=r'^source = "images-.*not UTF-8 .* rename it'):
            write()


def test_every_option_is_found_with_its_path_default_and_first_paragraph() -> None:
    found = {leaf.path: leaf for leaf in leaves(Outer)}
    assert list(found) == ["source", "kind", "sizes", "training.epochs", "training.rate"]
    assert found["source"].default is REQUIRED
    assert found["training.epochs"].default == 7
    assert found["training.epochs"].help == "Passes over the images."
    assert found["training.epochs"].kinds == {int}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "x", "trainng": {}}, r"file: trainng: no such setting: .* training"),
        (
            {"source": "x", "training": {"epoch": 3}},
            "training.epoch: .*did you mean training.epochs",
        ),
        ({"source": "x", "epochs": 3}, "epochs: no such setting: did you mean training.epochs"),
        (
            {"source": "x", "training": {"epochs": 0}},
            r"training.epochs: .*or equal to 1 \(got 0\)",
        ),
        ({}, "source: it is missing, and has no default$"),
    ],
)
def test_a_refusal_names_the_key_and_the_nearest_valid_one(values: Values, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer.parse(values, origin="file")


def test_what_a_value_implies_gives_way_to_what_is_given() -> None:
    assert Outer.parse({"source": "x", "kind": "fast"}, origin="file").training.epochs == 1
    given = {"source": "x", "kind": "fast", "training": {"epochs": 5}}
    assert Outer.parse(given, origin="file").training.epochs == 5
    assert Outer.parse({"source": "x"}, origin="file").training.epochs == 7


def test_tables_are_merged_key_by_key_and_values_are_replaced() -> None:
    under = {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    assert merge(under, {"a": {"c": [3]}, "e": 4}) == {"a": {"b": 1, "c": [3]}, "d": 2, "e": 4}
    assert under == {"a": {"b": 1, "c": [1, 2]}, "d": 2}


def test_what_is_written_is_read_back_also_with_comments(tmp_path: Path) -> None:
    settings = Outer(source=tmp_path / "images", sizes=(16, 20))
    for number, text in enumerate((settings.to_toml(), settings.to_commented_toml())):
        (tmp_path / f"{number}.toml").write_text(text)
        assert Outer.read(tmp_path / f"{number}.toml") == settings
    assert "# Passes over the images." in settings.to_commented_toml()


def test_relative_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "outer.toml").write_text('source = "images"\n')
    assert Outer.read(tmp_path / "outer.toml").source == tmp_path / "images"
    (tmp_path / "outer.toml").write_text('source = "/images"\n')
    assert Outer.read(tmp_path / "outer.toml").source == Path("/images")


def test_a_mark_of_utf_8_and_line_ends_of_windows_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "outer.toml").write_bytes(b'\xef\xbb\xbfsource = "/images"\r\nkind = "plain"\r\n')
    assert Outer.read(tmp_path / "outer.toml").source == Path("/images")


def test_of_a_long_value_only_the_beginning_is_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        Outer.parse({"source": "x", "kind": "y" * 100_000}, origin="file")
    assert len(str(refused.value)) < 400


def test_true_is_no_number() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs: Input should be a number, .*got True"):
        Outer.parse({"source": "x", "training": {"epochs": True}}, origin="file")


NESTED, LONG = b"a = " + b"[" * 5000, b"a = " + b"9" * 5000


@pytest.mark.parametrize(
    "content", [b"epochs = ", b"\xff\xfe", b"source = 'a'\nsource = 'b'\n", NESTED, LONG]
)
def test_what_is_no_toml_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outer.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"outer\.toml is not valid TOML"):
        Outer.read(tmp_path / "outer.toml")


def test_several_values_may_be_written_with_commas() -> None:
    for written in ("16,20", [16, 20], (16, 20)):
        assert Outer.parse({"source": "x", "sizes": written}, origin="file").sizes == (16, 20)
    assert Outer.parse({"source": "x", "sizes": 16}, origin="file").sizes == (16,)


def test_a_number_that_no_file_and_no_message_holds_is_refused() -> None:
    assert Inner.checked({"epochs": 2**63 - 1}).epochs == 2**63 - 1
    with pytest.raises(ConfigError, match=r"epochs: Input should be at most 9223372036854775807"):
        Inner.checked({"epochs": 2**63})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_is_infinite_unless_that_is_how_it_says_none(value: float) -> None:
    class Rates(Settings):
        rate: float = 0.1
        rates: tuple[float, ...] = ()
        most: float = math.inf

    for given in ({"rate": value}, {"rates": [1.0, value]}):
        with pytest.raises(ConfigError, match="Input should be a finite number"):
            Rates.checked(given)
    assert Rates.checked({"most": math.inf}).most == math.inf


def test_a_home_of_nobody_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('source = "~nobody-has-this-name/x"')
    with pytest.raises(ConfigError, match=r"c\.toml: source: '~nobody-has-this-name/x' begins with no"):
        Outer.read(tmp_path / "c.toml")
