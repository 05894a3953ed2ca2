"""Runs side by side: paired where they met the same episodes, and honest where they did not."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedfree.episodes import EpisodeSpec, mean_and_ci95
from fedfree.errors import ConfigError, StorageError
from simulations.baselines.evaluate import Comparison
from simulations.baselines.table import META_LEARNER
from simulations.config import SimulationConfig
from simulations.reporting.compared import write_comparison
from simulations.reporting.comparing import ComparedRuns, as_plain, score_table, settings_table
from simulations.reporting.episodes import EPISODES, read_episodes, write_episodes
from simulations.reporting.runs import open_finished
from simulations.reporting.tables import make_console, show

HOSTILE = "<script>alert('x')</script>"
SPEC = EpisodeSpec(5, 1, 15)


def accuracies(seed: int, *, mean: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)


def make_run(
    folder: Path,
    *,
    ours: Tensor,
    baseline: Tensor | None = None,
    episodes: str | None = "same",
    task: str = "5way1shot",
    **settings: Any,
) -> Path:
    """A finished run; with ``episodes`` None one that kept no accuracies of single episodes."""
    folder.mkdir()
    (folder / "config.toml").write_text(SimulationConfig.checked(settings).to_toml())
    (folder / "command.txt").write_text(f"fedfree-sim run {HOSTILE}\n")
    measured = mean_and_ci95(ours)
    few_shot = {"mean": measured.mean, "ci95": measured.ci95, "episodes": 200, "transductive": False}
    result: dict[str, Any] = {"few_shot": {task: few_shot}, "baselines": {}, "commit": folder.name}
    kept = {META_LEARNER: ours}
    if baseline is not None:
        its = mean_and_ci95(baseline)
        result["baselines"]["best_single_model"] = {task: {"mean": its.mean, "ci95": its.ci95}}
        kept["best_single_model"] = baseline
    (folder / "result.json").write_text(json.dumps(result))
    if episodes is not None:
        write_episodes(folder, {"glyphs": [Comparison(SPEC, kept, episodes)]})
    return folder


def compared(*folders: Path) -> ComparedRuns:
    return ComparedRuns([open_finished(folder) for folder in folders])


def test_what_is_kept_of_episodes_is_read_again_all_data_sets_in_turn(tmp_path: Path) -> None:
    first, second = accuracies(0), accuracies(1)
    domains = {
        "a": [Comparison(SPEC, {META_LEARNER: first}, "hash a")],
        "b": [Comparison(SPEC, {META_LEARNER: second}, "hash b")],
    }
    assert read_episodes(tmp_path) is None
    write_episodes(tmp_path, domains)
    kept = read_episodes(tmp_path)
    assert kept is not None and kept.sha256 == {"5way1shot": "hash a hash b"}
    torch.testing.assert_close(
        kept.accuracies["5way1shot"][META_LEARNER], torch.cat([first, second]), rtol=0, atol=1e-6
    )


def test_runs_on_the_same_episodes_are_compared_in_pairs(tmp_path: Path) -> None:
    first = accuracies(0)
    second = first + 0.02 + 0.01 * accuracies(1)
    runs = compared(make_run(tmp_path / "a", ours=first), make_run(tmp_path / "b", ours=second))
    difference = runs.difference(1, "5way1shot", META_LEARNER)
    expected = mean_and_ci95(second - first)
    assert difference is not None and difference.is_paired
    assert difference.mean == pytest.approx(expected.mean, abs=1e-4)
    assert difference.ci95 == pytest.approx(expected.ci95, abs=1e-4)
    assert "differences are paired" in runs.notes()[0]


@pytest.mark.parametrize("episodes", ["others", None], ids=["other episodes", "none kept"])
def test_runs_on_other_episodes_are_compared_unpaired_with_both_intervals(
    tmp_path: Path, episodes: str | None
) -> None:
    first, second = accuracies(0), accuracies(1, mean=0.6)
    folders = make_run(tmp_path / "a", ours=first), make_run(tmp_path / "b", ours=second, episodes=episodes)
    runs = compared(*folders)
    difference = runs.difference(1, "5way1shot", META_LEARNER)
    assert difference is not None and not difference.is_paired
    both = mean_and_ci95(first).ci95, mean_and_ci95(second).ci95
    assert difference.ci95 == pytest.approx(math.hypot(*both))
    assert "unpaired" in runs.notes()[0]


def test_a_baseline_that_one_run_lacks_has_no_difference(tmp_path: Path) -> None:
    with_baseline = make_run(tmp_path / "a", ours=accuracies(0), baseline=accuracies(2))
    runs = compared(with_baseline, make_run(tmp_path / "b", ours=accuracies(1)))
    table = score_table(runs)
    assert table.titles == ("", "a", "b", "b − a")
    assert [row[0] for row in table.texts] == [
        "5-way 1-shot, meta-learner",
        "5-way 1-shot, best single model",
    ]
    assert table.texts[1][2:] == ("—", "—")


def test_only_what_was_set_differently_is_shown(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", ours=accuracies(0), seed=3, cache="/one")
    second = make_run(
        tmp_path / "b", ours=accuracies(0), seed=3, cache="/two", server={"preset": "large"}, clients=9
    )
    runs = compared(first, second)
    assert runs.settings == {"server.preset": ["default", "large"], "clients": ["12", "9"]}
    rows = {row[0]: row[1:] for row in settings_table(runs).texts}
    assert rows == {"clients": ("12", "9"), "server.preset": ("default", "large"), "commit": ("a", "b")}


def test_settings_that_this_release_refuses_are_compared_all_the_same(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", ours=accuracies(0)), make_run(tmp_path / "b", ours=accuracies(0))
    text = (second / "config.toml").read_text()
    (second / "config.toml").write_text('colour = "blue"\n' + text.replace("clients = 12", "clients = 9"))
    assert compared(first, second).settings == {"colour": ["", "blue"], "clients": ["12", "9"]}


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name / "run", ours=accuracies(0))
    folders = [tmp_path / name / "run" for name in ("x", "y")]
    assert compared(*folders).names == [str(folder) for folder in folders]


def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ours=accuracies(0))
    with pytest.raises(ConfigError, match="got 1"):
        compared(run)
    with pytest.raises(ConfigError, match="named twice"):
        compared(run, tmp_path / "." / "a")
    other = make_run(tmp_path / "b", ours=accuracies(0), task="7way1shot")
    with pytest.raises(ConfigError, match=r"5-way 1-shot and 7-way 1-shot"):
        compared(run, other)
    (run / EPISODES).write_bytes(b"no tensors")
    third = make_run(tmp_path / "c", ours=accuracies(0))
    with pytest.raises(ConfigError, match=r"is damaged.*remove it"):
        compared(run, third).notes()


def test_json_says_of_every_difference_whether_it_is_paired(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, ours=accuracies(seed)) for seed, name in enumerate("ab")]
    plain = json.loads(json.dumps(as_plain(compared(*folders))))
    first, second = plain["accuracies"]["5way1shot"]["meta_learner"]
    assert first.keys() == {"accuracy"}
    assert second["difference"]["paired"] is True
    assert [run["name"] for run in plain["runs"]] == ["a", "b"]


def test_the_page_needs_nothing_else_and_escapes_what_runs_hold(tmp_path: Path) -> None:
    folders = [
        make_run(
            tmp_path / name, ours=accuracies(seed), baseline=accuracies(5), dataset=f"/d/{HOSTILE}{name}"
        )
        for seed, name in enumerate(("a<b>", "b&c"))
    ]
    page = write_comparison(compared(*folders), tmp_path / "page" / "comparison.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "a&lt;b&gt;" in page and "b&amp;c" in page
    assert not [word for word in ("http://", "https://", "src=", "href=", "@import", "url(") if word in page]
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count('<table class="scores">') == 1
    assert "differences are paired" in page


def test_a_hostile_name_of_a_run_reaches_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / name, ours=accuracies(0)) for name in ("a", "b\x1b[31m\n[/x]"[:8])]
    show(score_table(compared(*runs)), make_console())
    assert "\x1b" not in capsys.readouterr().out


def test_a_pipe_in_the_place_of_the_episodes_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / EPISODES)
    with pytest.raises(StorageError, match="it is a pipe"):
        read_episodes(tmp_path)
