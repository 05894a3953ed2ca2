"""Options out of settings classes: flags, ``--set``, files, and the command that gives them back."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from fedfree.errors import ConfigError
from fedfree.host.cli import App
from fedfree.host.options import Chosen, command_line, configured, given_values, parse_value
from fedfree.settings import Layer, Repeatable, Settings, Values, nested, value_at

FLAGS = {
    "source": "source",
    "epochs": "training.epochs",
    "threads": ("threads", "training.threads"),
    "fast": "fast",
    "begun": "begun",
}


class Training(Settings):
    """A table."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the images."""
    threads: int = 2
    """Of training."""
    flip: bool | None = None
    """Mirrors."""


class Config(Settings):
    """Everything."""

    source: Path
    """Where the images are."""
    fast: bool = False
    """Whether one epoch is enough."""
    begun: Annotated[str | None, Repeatable()] = None
    """From where."""
    threads: int = 2
    """Of the server."""
    training: Training = Training()
    """How."""

    @classmethod
    def implied(cls, given: Values) -> Layer:
        return Layer("fast", nested("training.epochs", 1) if value_at(given, "fast") is True else {})


def choose(*words: object) -> Chosen[Config]:
    """What a command line of these words comes to; raises what the command raises."""
    app, chosen = App(), []

    @app.command()
    @configured(Config, FLAGS)
    def command(given: Chosen[Config], out: Annotated[str, typer.Option(help="A folder.")] = "runs") -> None:
        chosen.append(given)

    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return chosen[0]


def test_flags_win_over_assignments_and_these_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('source = "images"\n[training]\nepochs = 3\nthreads = 3\n')
    found = choose("--config", file, "--set", "training.epochs=4", "--epochs", 5)
    assert found.settings.training.epochs == 5 and found.settings.training.threads == 3
    assert found.settings.source == tmp_path / "images"
    assert found.origins["training.epochs"] == "--epochs"
    assert found.origins["training.threads"] == str(file)
    assert found.origins["threads"] == "default"
    assert found.given == {"source", "training.epochs", "training.threads"}


def test_what_a_value_implies_says_so() -> None:
    found = choose("--source", "x", "--fast")
    assert found.settings.training.epochs == 1 and found.origins["training.epochs"] == "fast"


def test_a_flag_of_a_text_that_lists_several_may_be_given_several_times() -> None:
    assert choose("--source", "x", "--begun", "a", "--begun", "b,c").settings.begun == "a,b,c"
    assert choose("--source", "x").settings.begun is None


def test_a_path_or_a_text_is_taken_as_it_was_typed() -> None:
    chosen = choose("--source", "2024", "--begun", "true").settings
    assert (chosen.source, chosen.begun) == (Path("2024"), "true")


@pytest.mark.parametrize(
    "words", [("images", "--epochs", "3"), ("--epochs", "3", "images"), ("images", "-f")]
)
def test_an_option_may_be_named_by_its_place(words: tuple[str, ...], tmp_path: Path) -> None:
    app, chosen = App(), []

    @app.command()
    @configured(Config, {"epochs": "training.epochs"}, arguments={"images": "source"})
    def command(given: Chosen[Config]) -> None:
        chosen.append(given)

    (tmp_path / "c.toml").write_text('source = "elsewhere"\n[training]\nepochs = 3\n')
    said = [word.replace("-f", f"--config={tmp_path / 'c.toml'}") for word in words]
    assert CliRunner().invoke(app, said).exit_code == 0
    assert (chosen[0].settings.source, chosen[0].settings.training.epochs) == (Path("images"), 3)


def test_what_follows_on_another_line_is_not_passed_over() -> None:
    assert parse_value("3\nepochs = 4") == "3\nepochs = 4"


def test_what_is_named_by_its_place_is_refused_by_the_name_of_that_place() -> None:
    app = App()

    @app.command()
    @configured(Config, {}, arguments={"images": "source"})
    def command(given: Chosen[Config]) -> None:
        pytest.fail("used")

    refused = CliRunner().invoke(app, [""]).exception
    assert str(refused).startswith("IMAGES: names no file or folder")


def test_one_flag_may_set_several_options() -> None:
    found = choose("--source", "x", "--threads", 7).settings
    assert (found.threads, found.training.threads) == (7, 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--source", "x", "--epochs", 0), r"^--epochs: .*greater than or equal to 1 \(got 0\)"),
        (("--source", "x", "--epochs", "many"), r"^--epochs: .*integer.* \(got 'many'\)"),
        (
            ("--source", "x", "--set", "training.epochz=3"),
            r"--set training\.epochz: .*did you mean training\.e",
        ),
        (("--source", "x", "--set", "epochs"), "expected KEY=VALUE"),
        (("--source", "x", "--set", "training.epochs=0"), "^--set training.epochs: training.epochs: "),
        ((), "^source: it is missing"),
    ],
)
def test_a_refusal_names_what_was_typed(words: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(*words)


def test_a_wrong_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('source = "x"\n[training]\nepochs = 0\n')
    with pytest.raises(ConfigError, match=r"config\.toml: training\.epochs: "):
        choose("--config", tmp_path / "config.toml")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"fast": True},
        {"fast": True, "training": {"epochs": 5, "flip": False}},
        {"threads": 4, "training": {"threads": 4}, "begun": "a,b"},
        {"threads": 4, "training": {"threads": 1, "flip": True}},
    ],
)
def test_the_command_line_of_settings_gives_them_back(values: dict[str, Any]) -> None:
    settings = Config.parse({"source": "a b", **values}, origin="test")
    _, *words = shlex.split(command_line(["program"], settings, FLAGS))
    assert choose(*words).settings == settings
    assert Config.parse(given_values(settings), origin="test") == settings


def test_what_is_printed_with_origins_is_toml_that_is_read_back(tmp_path: Path) -> None:
    found = choose("--source", tmp_path / "images", "--epochs", 4)
    text = found.to_toml()
    assert "epochs = 4  # --epochs" in text and "threads = 2  # default" in text
    (tmp_path / "printed.toml").write_text(text)
    assert Config.read(tmp_path / "printed.toml") == found.settings
