"""The report of a run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from server.events import Event
from server.storage.run_directory import event_to_line
from simulations.reporting.pictures import synthetic_picture
from simulations.reporting.report import curves, write_report

HOSTILE = "<script>alert('x')</script>"


def measured(mean: float, gain: float) -> dict[str, float]:
    return {"mean": mean, "ci95": 0.61, "gain": gain, "gain_ci95": 0.93}


def contribution(organisation: int, **changes: object) -> dict[str, object]:
    usual = {
        "organisation": organisation,
        "id": f"{organisation:02d}" * 32,
        "architecture": "conv4-32-batch",
        "classes": 5,
        "privacy": "none",
        "state": "accepted",
        "reason": "",
    }
    return usual | changes


def usual_result() -> dict[str, Any]:
    few_shot = {"ci95": 0.84, "episodes": 600, "transductive": False}
    return {
        "few_shot": {"5way1shot": few_shot | {"mean": 48.2}, "5way5shot": few_shot | {"mean": 62.6}},
        "baselines": {
            "random_init": {"5way1shot": measured(31.6, 16.6), "5way5shot": measured(40.3, 22.3)},
            "parameter_average": {"5way1shot": measured(28.4, 19.8), "5way5shot": measured(33.5, 29.1)},
            "best_single_model": {"5way1shot": measured(41.9, 6.3), "5way5shot": measured(53.8, 8.8)},
            "pool_concatenation": {"5way1shot": measured(50.5, -2.3), "5way5shot": measured(65.7, -3.1)},
        },
        "baseline_notes": {"pool_concatenation": "reference only: it cannot be broadcast"},
        "contributions": [
            contribution(0),
            contribution(1, state="quarantined", reason=f"not finite {HOSTILE}"),
            contribution(2, state="failed", id=None, classes=None, reason="one class"),
        ],
        "organisations": [
            {
                "organisation": 0,
                "results": [{"n_way": 5, "n_shot": 1, "mean": 47.77, "ci95": 2.66, "episodes": 50}],
            }
        ],
        "recovery": {"images": 24000, "seconds": 88.1},
        "seconds": {"prepare": 1.2, "collect": 60.2, "learn": 131.5},
        "dataset": "glyphs",
        "preset": "default",
        "engine": "in-process",
        "seed": 7,
        "versions": {"fedfree": "0.1.0", "torch": "2.11.0"},
        "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
    }


def learn_events(iterations: int) -> list[Event]:
    return [
        Event(
            "learn",
            "progress",
            {
                "iteration": i,
                "of": iterations,
                "inversion_loss": 2 / i,
                "inversion_agreement": 1 - 1 / i,
                "distillation_loss": 0.1,
            },
        )
        for i in range(1, iterations + 1)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events = [Event("collect", "started", {}), *learn_events(20)]
    (tmp_path / "events.jsonl").write_text("".join(map(event_to_line, events)))
    (tmp_path / "config.toml").write_text(f'note = "{HOSTILE}"\n[evaluate]\nn_query = 15\n')
    (tmp_path / "command.txt").write_text("fedfree-sim run --seed 7 --out runs/demo\n")
    synthetic_picture({"ab" * 32: torch.zeros(5, 1, 32, 32, dtype=torch.uint8)}, tmp_path / "synthetic.png")
    return tmp_path


def report(run: Path, result: dict[str, Any] | None = None) -> str:
    (run / "result.json").write_text(json.dumps(result or usual_result()))
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, whether every tag is closed, and the text."""

    VOID = frozenset({"meta", "img", "line", "polyline", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.starts if name == tag]


def test_it_needs_nothing_but_itself(run: Path) -> None:
    page = report(run)
    elements = Elements(page)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in elements.starts}
    sources = [attributes["src"] or "" for _, attributes in elements.starts if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in elements.starts)


def test_every_number_of_the_comparison_appears(run: Path) -> None:
    text = Elements(report(run)).text
    result = usual_result()
    for score in result["few_shot"].values():
        assert f"{score['mean']:.1f} ± 0.8" in text
    for baseline in result["baselines"].values():
        for score in baseline.values():
            sign = "+" if score["gain"] > 0 else "−"
            assert f"{score['mean']:.1f} ± 0.6" in text
            assert f"gain {sign}{abs(score['gain']):.1f} ± 0.9" in text


def test_it_says_how_it_was_measured(run: Path) -> None:
    text = Elements(report(run)).text
    assert "600 of 5-way 1-shot, 600 of 5-way 5-shot; 15 queries a class" in text
    assert "Transductive false: every query was classified on its own" in text


def test_foreign_text_is_escaped_wherever_it_stands(run: Path) -> None:
    (run / "command.txt").write_text(f"fedfree-sim run {HOSTILE}")
    page = report(run, usual_result() | {"dataset": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    assert "<script" not in page
    assert f"not finite {HOSTILE}" in Elements(page).text


def test_a_missing_parameter_average_is_a_dash_with_its_reason(run: Path) -> None:
    result = usual_result()
    del result["baselines"]["parameter_average"]
    text = Elements(report(run, result)).text
    assert "parameter average — —" in text
    assert "different architectures have no parameter average" in text


def test_it_does_without_what_is_optional(run: Path) -> None:
    result = usual_result()
    del result["organisations"], result["baseline_notes"]
    (run / "command.txt").unlink()
    (run / "events.jsonl").write_text("")
    text = Elements(report(run, result)).text
    assert "measured themselves" not in text
    assert "How it learned" not in text
    assert "The command" not in text


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (6.3, "6.3 ± 0.9 points above the best alternative"),
        (0.5, "no measurable difference (+0.5 ± 0.9 points)"),
        (-4.1, "worse , by 4.1 ± 0.9 points"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval_allows(run: Path, gain: float, sentence: str) -> None:
    result = usual_result()
    result["baselines"]["best_single_model"]["5way1shot"]["gain"] = gain
    assert sentence in Elements(report(run, result)).text


def test_the_headline_does_not_compare_with_what_cannot_be_broadcast(run: Path) -> None:
    text = Elements(report(run)).text
    headline = text[: text.index("How good is the meta-learner?")]
    assert "best single model" in headline
    assert "side by side" not in headline


def test_who_decides_sees_alone_together_and_pooled_beside_each_other(run: Path) -> None:
    result = usual_result()
    result["baselines"]["public_start"] = {"5way1shot": measured(40.1, 8.1)}
    result["baselines"]["pooled_data"] = {"5way1shot": measured(55.2, -7.0)}
    text = Elements(report(run, result)).text
    chart = text[text.index("Alone, together") : text.index("All organisations were played")]
    shown = re.findall(r"(alone|this meta-learner|one place) (\d+\.\d) ±", chart)
    assert [value for _, value in shown] == ["40.1", "41.9", "48.2", "55.2"]


def test_nothing_to_choose_from_is_no_chart(run: Path) -> None:
    assert "Alone, together" not in report(run, usual_result() | {"baselines": {}})


def test_each_reader_is_led_to_a_part_of_the_page(run: Path) -> None:
    page = Elements(report(run))
    places = {attributes["id"] for _, attributes in page.starts if "id" in attributes}
    led = [attributes["href"] for attributes in page.attributes("a")]
    assert len(led) == 3 and {str(each).removeprefix("#") for each in led} == places


def test_the_privacy_officer_reads_each_statement_in_words_and_that_nothing_was_attacked(run: Path) -> None:
    statement = f"PRIVACY STATEMENT\n\nstatus  DP {HOSTILE}"
    result = usual_result()
    result["contributions"][0] |= {"privacy": "DP", "statement": statement}
    page = report(run, result)
    text = Elements(page).text
    assert HOSTILE not in page and "Statement of organisation 0, in words PRIVACY STATEMENT" in text
    assert "Statement of organisation 1" not in text
    assert "an attack that fails is not evidence of safety" in text


def test_contributions_are_listed_with_their_fate(run: Path) -> None:
    text = Elements(report(run)).text
    assert "0 000000000000 conv4-32-batch 5 none accepted" in text
    assert "quarantined : not finite" in text
    assert "failed : one class" in text
    assert "1 accepted, 1 quarantined, 1 failed" in text


def test_what_organisations_measured_is_shown(run: Path) -> None:
    assert "47.8 ± 2.7" in Elements(report(run)).text


def test_status_none_is_explained_without_a_word_of_comfort(run: Path) -> None:
    text = Elements(report(run)).text
    assert "No differential privacy." in text
    assert "All 2 contributions that arrived carry the privacy status none" in text
    assert not re.search(r"\b(safe|safely|private|anonymous|secure)\b", text, re.IGNORECASE)


def test_a_declared_privacy_status_is_reported_as_a_declaration(run: Path) -> None:
    result = usual_result()
    result["contributions"] = [contribution(0, privacy="DP"), contribution(1, privacy="DP")]
    text = Elements(report(run, result)).text
    assert "2 contributions declare the privacy status DP" in text
    assert "No differential privacy" not in text


def test_it_can_be_done_again_from_what_it_says(run: Path) -> None:
    text = Elements(report(run)).text
    for piece in ("fedfree-sim run --seed 7 --out runs/demo", "n_query = 15", "torch 2.11.0", "gpu none"):
        assert piece in text


def test_tables_pictures_and_drawings_are_described_for_those_who_cannot_see_them(run: Path) -> None:
    elements = Elements(report(run))
    tables, captions = elements.attributes("table"), elements.attributes("caption")
    assert len(tables) == len(captions) == 3
    assert all(attributes["alt"] for attributes in elements.attributes("img"))
    assert [attributes["aria-label"] for attributes in elements.attributes("svg")] == [
        "Inversion loss from 2 at iteration 1 to 0.1 at iteration 20",
        "Inversion agreement from 0 at iteration 1 to 0.95 at iteration 20",
        "Distillation loss from 0.1 at iteration 1 to 0.1 at iteration 20",
    ]


def test_a_curve_stays_within_its_axes() -> None:
    for curve in curves(learn_events(37)):
        xs, ys = zip(*curve.points, strict=True)
        assert len(xs) == 37
        assert list(xs) == sorted(xs)
        assert min(tick.at for tick in curve.x_ticks) <= xs[0]
        assert min(tick.at for tick in curve.y_ticks) <= min(ys)
        assert max(ys) <= max(tick.at for tick in curve.y_ticks)


def test_curves_show_the_last_attempt_only() -> None:
    (again,) = {len(curve.points) for curve in curves(learn_events(9) + learn_events(4))}
    assert again == 4


def test_curves_of_a_run_that_was_continued_are_whole() -> None:
    (points,) = {len(curve.points) for curve in curves(learn_events(9) + learn_events(12)[7:])}
    assert points == 12


def test_curves_leave_out_what_is_no_number() -> None:
    events = [Event("learn", "progress", {"iteration": i, "of": 3, "loss": float("nan")}) for i in (1, 2)]
    events.append(Event("learn", "progress", {"iteration": 3, "of": 3, "loss": 5.0}))
    (curve,) = curves(events)
    assert len(curve.points) == 1
