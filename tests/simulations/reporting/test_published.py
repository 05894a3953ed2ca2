"""The chain from configuration to documentation: nothing in it is typed by hand, and nothing is left over."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedfree.codec import sha256
from fedfree.errors import ConfigError
from fedfree.host.files import read_file
from simulations.commands import main as cli
from simulations.config import SimulationConfig
from simulations.reporting.facts import ROOT
from simulations.reporting.published import (
    DOCUMENTS,
    MARKED,
    RESULTS,
    block,
    fill,
    filled_documents,
    marked,
    read_records,
    read_templates,
    references,
)
from simulations.reporting.record import Column, Record
from tests.programs import RunProgram

CONFIGS = sorted((ROOT / "simulations" / "configs").glob("*.toml"))


def record(name: str = "some", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "name": name,
        "title": "Something",
        "command": "fedfree-sim bench something",
        "config": None,
        "config_sha256": None,
        "commit": "abc1234",
        "date": "2026-11-28",
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 1, "gpu": None, "driver": None},
        "seeds": [0, 1],
        "seconds": 90.0,
        "columns": [
            {"key": "seed", "title": "seed"},
            {"key": "shots", "title": "shots"},
            {"key": "meta_learner", "title": "ours", "format": "{mean:.1f} ± {ci95:.1f}"},
        ],
        "rows": [
            {"seed": 0, "shots": "1-shot", "meta_learner": {"mean": 48.12, "ci95": 0.8}},
            {"seed": 0, "shots": "5-shot", "meta_learner": {"mean": 63.8, "ci95": 0.8}},
        ],
    }
    return Record.parse(values | changes, origin="test")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with one result and a marker for it."""
    for document in DOCUMENTS:
        (tmp_path / document).parent.mkdir(exist_ok=True)
        (tmp_path / document).write_text("# A title\n\n<!-- table: some -->\n<!-- end -->\n")
    (tmp_path / RESULTS).mkdir(parents=True)
    (tmp_path / RESULTS / "some.json").write_text(record().to_json())
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_the_committed_documents_hold_what_the_results_say(document: Path) -> None:
    before, after = filled_documents(ROOT)[document]
    assert after == before, f"{document} is not what the results say: run `fedfree-sim results write`"


def test_every_result_and_every_template_is_shown_or_taken_from() -> None:
    records = read_records(ROOT)
    templates = {path.name.removesuffix(".md.j2"): path for path in (ROOT / RESULTS).glob("*.md.j2")}
    shown = {
        name
        for document in DOCUMENTS
        for names in marked(read_file(ROOT / document).decode())
        for name in names
    }
    assert shown == {*records, *templates}


def test_docs_results_has_no_measured_number_beside_its_tables() -> None:
    text = MARKED.sub("", read_file(ROOT / "docs" / "results.md").decode())
    assert re.findall(r"\d+\.\d+", re.sub(r"`[^`]*`", "", text)) == []


def test_a_result_was_measured_with_the_configuration_that_is_there() -> None:
    for name, each in read_records(ROOT).items():
        if each.config and each.origin is None:
            found = sha256(read_file(ROOT / each.config))
            assert found == each.config_sha256, f"{each.config} changed: measure {name} again"


def test_every_configuration_is_that_of_a_result_and_the_other_way_round() -> None:
    named = {each.config for each in read_records(ROOT).values() if each.config}
    assert named == {path.relative_to(ROOT).as_posix() for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_begins_with_the_command_that_measures_it(path: Path) -> None:
    program, *words = shlex.split(path.read_text().splitlines()[0].removeprefix("# "))
    command: click.Command = typer.main.get_command(cli.app)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    context = command.make_context("command", words)
    assert program == "fedfree-sim"
    assert ROOT / context.params["config_file"] == path
    SimulationConfig.read(path)


@pytest.mark.parametrize("key", ["command", "commit", "machine", "seeds", "rows", "config_sha256"])
def test_a_result_without_a_required_key_is_refused_by_its_name(tmp_path: Path, key: str) -> None:
    values = record().model_dump()
    del values[key]
    with pytest.raises(ConfigError, match=f"{key}: it is missing"):
        Record.parse(values, origin="some.json")


def test_a_record_comes_back_from_its_json_as_it_was(tmp_path: Path) -> None:
    rows = [{"seed": 1, "shots": "5-shot", "meta_learner": None, "all": [1.5, 2], "epsilon": "inf"}]
    before = record(rows=rows, details={"every": [1, 2.5]}, notes=["a note"])
    (tmp_path / "some.json").write_text(before.to_json())
    assert Record.load(tmp_path / "some.json") == before


@pytest.mark.parametrize(
    ("form", "cell", "text"),
    [
        ("{}", "conv4-32 - a name", "conv4-32 - a name"),
        ("{:.1f}", 2, "2.0"),
        ("{:.1f}", [1.25, -2], "1.2, −2.0"),
        ("{mean:+.1f} ± {ci95:.1f}", {"mean": -0.64, "ci95": 0.2}, "−0.6 ± 0.2"),
        ("{value:.0f} % of {peak:.0f} GFLOP/s", {"value": 28.4, "peak": 229}, "28 % of 229 GFLOP/s"),
        ("{:.1f}", None, "—"),
    ],
)
def test_a_cell_is_shown_as_its_column_says(form: str, cell: Any, text: str) -> None:
    column = Column(key="cell", title="", format=form)
    assert column.shown({"cell": cell}) == text
    assert column.shown({}) == ""


@pytest.mark.parametrize(("form", "cell"), [("{mean}", 3), ("{mean:.1f}", {"value": 3}), ("{:d}", 0.5)])
def test_a_cell_that_does_not_fit_its_column_is_named(form: str, cell: Any) -> None:
    with pytest.raises(ConfigError, match=r"column ours: .* does not fit"):
        Column(key="ours", title="", format=form).shown({"ours": cell})


def test_rows_that_differ_in_shots_alone_become_one_with_what_they_were_measured_with_beneath() -> None:
    assert block([record()]).splitlines() == [
        "| seed | ours |",
        "| --- | ---: |",
        "| 0 | 48.1 ± 0.8 / 63.8 ± 0.8 |",
        "",
        "- `fedfree-sim bench something`; seeds 0, 1; commit abc1234; 2 cores of a CPU; 1 thread; "
        "2026-11-28; 1 min 30 s in all",
    ]


def test_records_with_columns_alike_share_a_table_and_new_columns_stand_before_their_neighbour() -> None:
    other = record(
        "other",
        title="Another",
        columns=[
            {"key": "seed", "title": "seed"},
            {"key": "models", "title": "models"},
            {"key": "meta_learner", "title": "ours", "format": "{:.2f}"},
        ],
        rows=[{"seed": 3, "models": 24, "meta_learner": 50}],
    )
    lines = block([record(), other]).splitlines()
    assert lines[0] == "|  | seed | models | ours |"
    assert lines[2:4] == ["| Something | 0 |  | 48.1 ± 0.8 / 63.8 ± 0.8 |", "| Another | 3 | 24 | 50.00 |"]
    assert [line[:2] for line in lines[5:]] == ["- ", "- "]


def test_a_template_takes_numbers_and_is_refused_one_that_is_not_there() -> None:
    calls: dict[str, Any] = references({"some": record()})
    assert calls["cell"]("some", "meta_learner", seed=0, shots="5-shot") == "63.8 ± 0.8"
    assert calls["number"]("some", "meta_learner", "mean", shots="1-shot") == 48.12
    assert calls["means"]("some", "meta_learner") == "48.1 / 63.8"
    for call, message in (
        (lambda: calls["cell"]("none", "meta_learner"), "no record 'none' .*use some"),
        (lambda: calls["cell"]("some", "theirs", shots="1-shot"), "no column 'theirs' .*use seed, shots"),
        (lambda: calls["cell"]("some", "meta_learner", seed=0), "expected one row .*got 2"),
        (lambda: calls["number"]("some", "shots", shots="1-shot"), "expected a number, .*got '1-shot'"),
        (lambda: calls["means"]("some", "meta_learner", seed=7), "no row with .*7.* in some"),
        (lambda: calls["means"]("some", "theirs"), "expected a number, .*got None"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.parametrize("text", ["{{ nobody }}", "{{ 1 +", '{{ means("none", "a") }}'])
def test_a_template_that_cannot_be_rendered_is_one_clear_error(clone: Path, text: str) -> None:
    (clone / RESULTS / "short.md.j2").write_text(text)
    with pytest.raises(ConfigError):
        read_templates(clone, read_records(clone))


def test_a_template_is_rendered_by_the_name_of_its_file(clone: Path) -> None:
    (clone / RESULTS / "short.md.j2").write_text('{{ means("some", "meta_learner") }}\n')
    assert read_templates(clone, read_records(clone)) == {"short": "48.1 / 63.8\n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n<!-- end -->\n", "'nothing'"),
        ("<!-- table: some -->\n| a |\n", "no <!-- end -->"),
        ("<!-- table: some -->\n<!-- table: some -->\n<!-- end -->\n", "no <!-- end -->"),
    ],
)
def test_a_marker_that_names_nothing_or_has_no_end_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"x.md: .*{message}"):
        fill(text, {"some": record()}, {}, document=Path("x.md"))


def test_numbers_changed_by_hand_are_written_over_and_the_rest_is_left(
    clone: Path, run_program: RunProgram
) -> None:
    assert run_program("simulations", "results", "write", "--root", clone)[0] == 0
    good = (clone / "README.md").read_text()
    assert good.startswith("# A title\n") and "| 0 | 48.1 ± 0.8 / 63.8 ± 0.8 |" in good
    (clone / "README.md").write_text(good.replace("48.1", "58.1"))
    status, printed, _ = run_program("simulations", "results", "write", "--root", clone)
    assert status == 0 and printed.splitlines()[:-1] == ["wrote README.md"]
    assert (clone / "README.md").read_text() == good


def test_what_a_benchmark_left_is_published_under_its_own_name(clone: Path, run_program: RunProgram) -> None:
    rows = [{"seed": 0, "shots": "1-shot", "meta_learner": {"mean": 50, "ci95": 1}}]
    (clone / "quality.json").write_text(record(rows=rows).to_json())
    added = run_program("simulations", "results", "add", clone / "quality.json", "--root", clone)
    assert added[0] == 0
    assert Record.load(clone / RESULTS / "some.json").rows[0]["meta_learner"] == {"mean": 50, "ci95": 1}
    assert "| 0 | 50.0 ± 1.0 |" in (clone / "docs" / "results.md").read_text()


def test_outside_a_clone_the_remedy_is_one_line(tmp_path: Path, run_program: RunProgram) -> None:
    status, _, err = run_program("simulations", "results", "write", "--root", tmp_path)
    assert status == 2 and "give --root, the folder of a clone" in err
