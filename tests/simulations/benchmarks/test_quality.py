"""``fedfree-sim bench quality``: its cases, its table and checks, and that it continues where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedfree.codec import sha256
from fedfree.errors import ConfigError
from simulations import series
from simulations.benchmarks.quality import available_cases, choose_cases, config_of, growth, measure
from simulations.benchmarks.quality_plots import plots
from simulations.benchmarks.quality_table import checks, table, values
from simulations.config import SimulationConfig
from simulations.reporting.record import Record
from simulations.series import Measured, Run
from tests.programs import RunProgram

MakeTree = Callable[..., Path]
THREE = "data/a.zip,data/b.zip,data/c.zip"


def pool(**changes: object) -> SimulationConfig:
    return SimulationConfig.parse({"clients": 24} | changes, origin="test")


def fake_result(
    mean: float, *, seed: int = 0, models: int = 24, domains: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What a federation would leave, with 1-shot accuracy ``mean``."""

    def few_shot(at: float) -> dict[str, Any]:
        score = {"ci95": 0.8, "episodes": 600, "transductive": False}
        return {"5way1shot": score | {"mean": at}, "5way5shot": score | {"mean": at + 14}}

    def baselines(at: float) -> dict[str, Any]:
        gains = {"random_init": 13.0, "best_single_model": 6.0, "pool_concatenation": -3.0}
        return {
            name: {
                task: {"mean": each["mean"] - gain, "ci95": 0.7, "gain": gain, "gain_ci95": 0.9}
                for task, each in few_shot(at).items()
            }
            for name, gain in gains.items()
        }

    def part(at: float) -> dict[str, Any]:
        return {"few_shot": few_shot(at), "baselines": baselines(at)}

    own = {"domains": {name: part(at) for name, at in domains.items()}} if domains else {}
    return {
        **part(mean),
        **own,
        "contributions": [{"state": "accepted"}] * models + [{"state": "failed"}],
        "seconds": {"collect": 60.0, "learn": 570.0},
        "seed": seed,
        "finished": "2026-11-22T10:00:00+00:00",
        "commit": "abc1234",
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None},
    }


def case(name: str, *means: float, models: int = 24, domains: Mapping[str, float] | None = None) -> Measured:
    config = pool(dataset=THREE if domains else "data/a.zip", clients=models)
    return Measured(
        name,
        tuple(
            Run(
                Path("runs") / name / str(seed),
                config.model_copy(update={"seed": seed}),
                fake_result(mean, seed=seed, models=models, domains=domains),
            )
            for seed, mean in enumerate(means)
        ),
    )


class FakeSimulate:
    """Leaves a run's files without training, and remembers which runs it was asked for."""

    def __init__(self, *, killed_at: int | None = None) -> None:
        self.runs: list[Path] = []
        self.killed_at = killed_at

    def __call__(self, run: Path, config: SimulationConfig, *, command: str) -> None:
        if len(self.runs) == self.killed_at:
            raise KeyboardInterrupt
        self.runs.append(run)
        run.mkdir(parents=True)
        (run / "config.toml").write_text(config.to_toml())
        (run / "result.json").write_text(json.dumps(fake_result(40.0, seed=config.seed)))


def test_a_case_changes_what_its_name_says_and_nothing_else() -> None:
    base = pool()
    cases = {name: config_of(base, name) for name in available_cases(base)}
    assert list(cases) == [
        "default",
        "paper",
        "large",
        "architectures",
        "student-resnet18",
        "groupnorm",
        "models-4",
        "models-8",
        "models-16",
        "start",
    ]
    assert cases["default"] == base
    assert cases["start"] == pool(start="efficientnet-lite0")
    assert cases["paper"] == pool(server={"preset": "paper"})
    assert cases["large"] == pool(server={"preset": "large"})
    assert cases["architectures"] == pool(architectures="conv4,resnet10,resnet18")
    assert cases["student-resnet18"] == pool(server={"architecture": "resnet18"})
    assert cases["groupnorm"] == pool(architectures="conv4-group")
    assert cases["models-8"] == pool(clients=8)


def test_several_data_sets_give_the_mix_and_each_alone_with_as_many_models() -> None:
    base = pool(dataset=THREE, image_sizes="32,64")
    cases = {name: config_of(base, name) for name in available_cases(base)}
    assert cases["domains"] == base
    assert cases["domain-b"] == pool(dataset="data/b.zip", image_sizes="64")
    assert cases["domain-c"] == pool(dataset="data/c.zip", image_sizes="32")


def test_from_a_start_there_are_the_data_sets_alone_and_their_mixture(start: Path) -> None:
    base = pool(dataset=THREE, start=str(start), clients=12)
    cases = available_cases(base)
    assert choose_cases("start", cases) == ["start-a", "start-b", "start-c"]
    assert choose_cases("mixture", cases) == ["mixture", "start-a", "start-b", "start-c"]
    assert config_of(base, "mixture") == base
    assert config_of(base, "start-b") == pool(dataset="data/b.zip", start=str(start), clients=12)
    with pytest.raises(ConfigError, match="no case 'pool' in this pool: use mixture, start-a"):
        choose_cases("pool", cases)


def test_the_growth_curve_ends_with_the_whole_pool() -> None:
    assert choose_cases("growth", available_cases(pool(clients=12))) == ["default", "models-4", "models-8"]
    curve = growth([case("default", 44, models=12), case("models-8", 42, models=8), case("paper", 30)])
    assert [each.case for each in curve] == ["models-8", "default"]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("pool", ["default"]),
        ("paper,norms", ["default", "paper", "groupnorm"]),
        ("models-4, student-resnet18", ["student-resnet18", "models-4"]),
        ("domains", ["domains", "domain-a", "domain-b", "domain-c"]),
        ("domain-b", ["domain-b"]),
        ("start", ["start-a", "start-b", "start-c"]),
    ],
)
def test_cases_are_chosen_by_name_or_group(text: str, chosen: list[str]) -> None:
    assert choose_cases(text, available_cases(pool(dataset=THREE))) == chosen


@pytest.mark.parametrize("name", ["teleport", "domains", "models-16", ""])
def test_a_case_that_this_pool_does_not_have_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no case '{name}'.*use default, paper"):
        choose_cases(name, available_cases(pool(clients=12)))


def test_a_killed_bench_runs_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "simulate", FakeSimulate(killed_at=3))
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, pool(), cases="norms", seeds=range(2), tell=lambda _: None)
    again = FakeSimulate()
    monkeypatch.setattr(series, "simulate", again)
    lines: list[str] = []
    measured = measure(tmp_path, pool(), cases="norms", seeds=range(2), tell=lines.append)
    assert again.runs == [tmp_path / "groupnorm" / "1"]
    assert [each.case for each in measured] == ["default", "groupnorm"]
    assert ["was there" in line for line in lines] == [True, True, True, False]
    assert lines[3] == (
        "groupnorm, seed 1: 5-way 1-shot 40.0 ± 0.8, 5-way 5-shot 54.0 ± 0.8; "
        "learned in 9 min 30 s, 10 min 30 s in all"
    )


def test_cases_that_come_to_the_same_federation_share_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSimulate()
    monkeypatch.setattr(series, "simulate", fake)
    measured = measure(
        tmp_path, pool(dataset=THREE), cases="pool,domains", seeds=range(1), tell=lambda _: None
    )
    assert [each.case for each in measured] == ["default", "domains", "domain-a", "domain-b", "domain-c"]
    assert [run.parent.name for run in fake.runs] == ["default", "domain-a", "domain-b", "domain-c"]


def test_a_folder_with_another_configuration_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "simulate", FakeSimulate())
    measure(tmp_path, pool(), cases="paper", seeds=range(1), tell=lambda _: None)
    fake = FakeSimulate()
    monkeypatch.setattr(series, "simulate", fake)
    with pytest.raises(ConfigError, match=r"default/0 holds another federation .* --out"):
        measure(tmp_path, pool(server={"iterations": 9}), cases="norms", seeds=range(1), tell=lambda _: None)
    assert fake.runs == []


def test_a_row_is_the_mean_over_the_seeds_with_the_mean_interval() -> None:
    shown = table([case("default", 40.0, 43.0)])
    row = dict(zip(shown.titles, shown.texts[0], strict=True))
    assert row["case"] == "default" and row["models"] == "24" and row["shots"] == "5-way 1-shot"
    assert row["meta-learner"] == "41.5 ± 0.8"
    assert row["each seed"] == "40.0, 43.0"
    assert row["best single model"] == "35.5 ± 0.7"
    assert row["gain over best single"] == "+6.0 ± 0.9"
    assert row["side by side (reference)"] == "44.5 ± 0.7"
    assert row["server min"] == "9.5"
    assert "--clients 24 --out runs/default/S --seed S`, seeds 0, 1, commit abc1234" in shown.notes[0]
    assert "2 cores of a CPU, 2 threads, no GPU, 2026-11-22, 21 min 00 s in all" in shown.notes[0]


def from_start(name: str, mean: float, average: float, share: float) -> Measured:
    """A case from a start whose models' average is ``average`` in 1-shot episodes."""
    measured = case(name, mean)
    (run,) = measured.runs
    baselines = dict(run.result["baselines"])
    del baselines["random_init"]
    for baseline, at in (("public_start", 30.0), ("parameter_average", average), ("pooled_data", 60.0)):
        score = {"mean": at, "ci95": 0.7, "gain": mean - at, "gain_ci95": 0.9}
        baselines[baseline] = dict.fromkeys(measured.tasks, score)
    closed = {"from": "public_start", "mean": share, "ci95": 3.0}
    shares = dict.fromkeys(measured.tasks, closed)
    result = {**run.result, "baselines": baselines, "share_closed": shares}
    config = pool(dataset=run.config.dataset, start="efficientnet-lite0")
    return Measured(name, (Run(run.folder, config, result),))


def test_from_a_start_the_table_shows_whatever_people_would_pick_and_the_share_of_the_way() -> None:
    shown = table([from_start("start", 45.0, 44.0, 50.0)])
    row = dict(zip(shown.titles, shown.texts[0], strict=True))
    assert "random initialisation" not in row
    assert row["public start, frozen"] == "30.0 ± 0.7"
    assert row["parameter average"] == "44.0 ± 0.7"
    assert row["pooled data (reference)"] == "60.0 ± 0.7"
    assert row["share of the way to pooled, %"] == "50.0 ± 3.0"
    (case_values,) = values([from_start("start", 45.0, 44.0, 50.0)])["rows"]  # type: ignore[misc]
    assert case_values["share_closed"]["5way1shot"] == {"mean": 50.0, "ci95": 3.0}
    assert plots([from_start("start", 45.0, 44.0, 50.0), case("default", 44.0)]).keys() == {"quality"}


def test_from_a_start_nothing_may_be_clearly_below_the_average_of_the_models() -> None:
    held = [
        check.holds
        for average in (44.0, 45.5, 46.5)
        for check in checks([from_start("start", 45.0, average, 50.0)])[:1]
    ]
    assert held == [True, True, False]


def test_a_pool_of_another_kind_may_be_two_points_below_its_reference() -> None:
    found = checks([case("default", 44.0), case("groupnorm", 42.1), case("architectures", 41.9)])
    assert [(check.claim[:13], check.holds) for check in found] == [
        ("architectures", False),
        ("architectures", False),
        ("groupnorm at ", True),
        ("groupnorm at ", True),
    ]
    assert str(found[0]) == "architectures at most 2 points below default, 5-way 1-shot (-2.1): NO"


def test_a_mix_is_compared_with_each_data_set_alone() -> None:
    mixed = case("domains", 50.0, domains={"a": 44.0, "b": 56.0, "c": 50.0})
    found = checks([mixed, case("domain-a", 45.0), case("domain-b", 59.0)])
    assert [(check.claim[:38], check.holds) for check in found[::2]] == [
        ("domains at most 2 points below domain-", True),
        ("domains at most 2 points below domain-", False),
    ]
    assert "on a, 5-way 1-shot (-1.0)" in found[0].claim
    assert [row[0] for row in table([mixed]).texts[::2]] == [
        "domains",
        "domains: a",
        "domains: b",
        "domains: c",
    ]


def test_growth_must_rise_at_every_step() -> None:
    small, large = case("models-4", 38.0, models=4), case("default", 44.0)
    (one_shot, _) = checks([large, small])
    assert one_shot.holds and "(4 models 38.0, 24 models 44.0)" in one_shot.claim
    assert not checks([large, small, case("models-8", 37.9, models=8)])[0].holds


def test_the_numbers_behind_the_table_are_written_with_where_they_come_from() -> None:
    mixed = case("domains", 50.0, 51.0, domains={"a": 44.0})
    (row,) = values([mixed])["rows"]  # type: ignore[misc]
    assert row["few_shot"]["5way1shot"] == {"mean": 50.5, "ci95": 0.8, "seeds": [50.0, 51.0]}
    assert row["baselines"]["best_single_model"]["5way1shot"]["gain"] == 6.0
    assert row["domains"]["a"]["few_shot"]["5way5shot"]["mean"] == 58.0
    assert row["runs"][1]["seed"] == 1 and row["runs"][1]["commit"] == "abc1234"
    assert row["runs"][1]["command"].startswith("fedfree-sim run --dataset data/a.zip")
    assert row["server_minutes"] == 9.5


def test_the_growth_curve_is_drawn_where_there_is_one() -> None:
    assert plots([case("default", 44.0)]).keys() == {"quality"}
    pictures = plots([case("default", 44.0), case("models-4", 38.0, models=4)])
    assert pictures.keys() == {"quality", "quality-growth"}
    line = pictures["quality-growth"].axes[0].lines[0]
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[4, 24], [38.0, 44.0]]


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--cases", "teleport", "no case 'teleport'"), ("--cases", "domains", "several data sets")],
)
def test_wrong_input_is_one_line_and_status_2(
    run_program: RunProgram, tmp_path: Path, option: str, value: str, word: str
) -> None:
    status, _, err = run_program("simulations", "bench", "quality", "--out", tmp_path / "out", option, value)
    (line,) = err.splitlines()
    assert status == 2 and line.startswith("error:") and word in line
    assert not (tmp_path / "out").exists()


def test_a_tiny_bench_leaves_its_table_and_pictures_and_trains_nothing_the_second_time(
    run_program: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_tree: MakeTree
) -> None:
    (tmp_path / "tiny.toml").write_text(
        "classes_each = 3\nn_way = 3\nn_query = 2\nserver = { threads = 1 }\n"
        "training = { epochs = 1, min_steps = 5, threads = 1 }\n"
    )
    out = tmp_path / "out"
    arguments = (
        *("simulations", "bench", "quality"),
        *("--config", tmp_path / "tiny.toml", "--dataset", make_tree("images"), "--image-size", 16),
        *("--clients", 2, "--seeds", 1, "--iterations", 1, "--episodes", 4, "--device", "cpu"),
        *("--cache", tmp_path / "cache", "--out", out),
    )
    status, printed, _ = run_program(*arguments)
    assert status == 0 and "default, seed 0: 3-way 1-shot" in printed
    written = {path.name for path in out.iterdir()}
    assert written == {"default", "quality.json", "quality.md", "quality.png", "quality.svg"}
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")
    record = Record.load(out / "quality.json")
    assert (record.name, record.config_sha256) == ("tiny", sha256((tmp_path / "tiny.toml").read_bytes()))
    assert (record.seeds, record.machine.threads, record.machine.gpu) == ((0,), 1, None)
    (row,) = record.details["rows"]
    result = json.loads((out / "default" / "0" / "result.json").read_text())
    assert row["few_shot"]["3way5shot"]["seeds"] == [result["few_shot"]["3way5shot"]["mean"]]
    assert row["runs"][0]["commit"] == result["commit"]
    assert record.seconds == pytest.approx(sum(result["seconds"].values()), abs=0.1)
    assert record.rows[1]["meta_learner"] == {
        name: result["few_shot"]["3way5shot"][name] for name in ("mean", "ci95")
    }
    markdown = (out / "quality.md").read_text()
    assert markdown.splitlines()[0].startswith("| case | models | shots | meta-learner |")
    assert len({line.count("|") for line in markdown.splitlines()[:4]}) == 1

    monkeypatch.setattr(series, "simulate", lambda *_, **__: pytest.fail("trained again"))
    status, printed, _ = run_program(*arguments)
    assert status == 0 and "(was there)" in printed
    assert (out / "quality.md").read_text() == markdown
