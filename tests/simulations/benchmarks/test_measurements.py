"""``fedfree-sim bench speed``, ``scale`` and ``alignment``, in miniature and against known answers."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fedfree.episodes import Accuracy
from fedfree.errors import ConfigError
from fedfree.host.starts import keep_start
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.learning.meta_learn import walk
from server.storage.store import ACCEPTED, Store
from simulations.benchmarks.alignment import Loss, alignment, outer_step
from simulations.benchmarks.pace import Look, Pace, sentence
from simulations.benchmarks.recovery import AgainstScratch, Attempt
from simulations.benchmarks.scale import Cost, Scale, begin_run, fill, iterate, plot
from simulations.benchmarks.timing import alternate, bytes_moved, kind_of, operations, time_shares
from simulations.commands.bench import _counts
from tests.programs import RunProgram

MakeTree = Callable[..., Path]
CPU = torch.device("cpu")
TINY = """
n_query = 2
episodes = 5
training = { epochs = 1, min_steps = 2, image_size = 16, threads = 1 }
server = { threads = 1 }
"""


def pool_options(tmp_path: Path, tree: Path, *, clients: int) -> list[object]:
    (tmp_path / "tiny.toml").write_text(TINY)
    options = {"--config": tmp_path / "tiny.toml", "--dataset": tree, "--clients": clients}
    options |= {"--iterations": 2, "--out": tmp_path / "out", "--cache": tmp_path / "cache"}
    return [word for pair in options.items() for word in pair]


def test_a_matrix_product_takes_two_operations_for_each_product_of_two_numbers() -> None:
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert operations(lambda: left @ right) == 2 * 3 * 5 * 7


def test_an_operation_moves_what_it_reads_and_what_it_writes_and_a_view_nothing() -> None:
    left, right = torch.rand(3, 5), torch.rand(7, 5)
    assert bytes_moved(lambda: left @ right.T) == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert bytes_moved(lambda: left.add_(1)) == 4 * 2 * 3 * 5
    assert bytes_moved(lambda: left.reshape(5, 3)[:2]) == 0


def look(seconds: float, accuracy: float) -> Look:
    return Look(1, seconds, {"5way1shot": Accuracy(accuracy, 0.01, 600)})


def test_time_to_accuracy_is_that_of_the_first_look_at_which_it_was_there() -> None:
    ours = Pace("default", [look(2, 0.3), look(4, 0.4), look(6, 0.5)])
    theirs = Pace("published", [look(10, 0.3), look(80, 0.35), look(120, 0.34)])
    assert ours.seconds_to("5way1shot", 0.35) == 4
    assert theirs.seconds_to("5way1shot", 0.5) is None
    assert sentence(ours, theirs, "5way1shot").endswith("default after 4 s, 20.0 times sooner")
    assert sentence(theirs, ours, "5way1shot").endswith("published never")


def test_what_is_compared_is_called_in_turn_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    times = alternate([lambda: calls.append("a"), lambda: calls.append("b")], CPU, repeats=2)
    assert "".join(calls) == "ababab"
    assert len(times) == 2 and all(time >= 0 for time in times)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::max_pool2d_with_indices", "pooling and upsampling"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::_foreach_addcdiv_", "optimizer"),
        ("aten::addmm", "matrix products"),
        ("aten::copy_", "copies and formats"),
        ("aten::leaky_relu", "elementwise and other"),
    ],
)
def test_operations_are_sorted_by_the_kind_of_work(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_shares_of_the_time_add_up_and_the_largest_comes_first() -> None:
    images, weights = torch.rand(4, 16, 32, 32), torch.rand(16, 16, 3, 3)
    shares = time_shares(lambda: torch.nn.functional.conv2d(images, weights), CPU)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "convolution"


def attempt(seconds: float, *, quality: float, few_shot: float) -> Attempt:
    return Attempt("way", 5, 100, seconds, quality, {"5way1shot": torch.tensor([few_shot, few_shot])})


def test_the_speed_up_is_over_the_fastest_that_is_as_good_in_both_measures() -> None:
    scratch = [
        attempt(1, quality=0.9, few_shot=0.3),
        attempt(2, quality=0.7, few_shot=0.5),
        attempt(60, quality=0.9, few_shot=0.5),
        attempt(30, quality=0.8, few_shot=0.4),
    ]
    ours = attempt(2, quality=0.8, few_shot=0.4)
    assert AgainstScratch(ours, scratch).speedup == 15
    comparison = AgainstScratch(ours, scratch[:2])
    assert comparison.speedup is None
    assert "not as good from scratch within 5 steps" in comparison.sentences()[0]


@pytest.mark.parametrize("has_start", [False, True])
def test_a_store_is_filled_to_the_number_asked_for_with_what_is_valid(
    tmp_path: Path, has_start: bool, make_start: Callable[..., LoadedStart]
) -> None:
    start = make_start() if has_start else None
    store = Store(tmp_path, lambda: start)
    for count in (3, 5, 5):
        fill(store, count)
        assert len(store.ids(ACCEPTED)) == count
    heads = [store.network(identity)[1].get_parameter("head.weight") for identity in store.ids(ACCEPTED)]
    assert len({head.sum().item() for head in heads}) == 5


@pytest.mark.parametrize("has_start", [False, True])
def test_a_meta_iteration_is_timed_on_a_store(
    tmp_path: Path, has_start: bool, make_start: Callable[..., LoadedStart]
) -> None:
    start = None
    if has_start:
        start = tmp_path / "start"
        made = make_start()
        keep_start(start, made.start, made.weights)
    server = ServerConfig(preset="start" if has_start else "default", iterations=2, threads=1)
    invert = server.invert.model_copy(update={"images_per_model": 10, "steps": 1})
    learn = server.learn.model_copy(update={"compositions": 4, "relational_tasks": 2, "batch_size": 8})
    server = server.model_copy(update={"invert": invert, "learn": learn})
    fill(begin_run(tmp_path / "run", server, start), 3)
    cost = iterate(tmp_path / "run", server)
    assert (cost.models, cost.processes) == (3, 1)
    assert cost.seconds > 0
    assert cost.peak_megabytes is not None and cost.peak_megabytes > 10


def test_cost_is_drawn_as_multiples_of_the_smallest_pools() -> None:
    pools = [Cost(20, 1, 0.1, 2.0, 500.0), Cost(1000, 1, 0.2, 3.0, 550.0)]
    left, right = plot(Scale(pools, [Cost(20, 1, 1.0, 4.0), Cost(20, 2, 1.0, 2.5)])).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn["seconds"] == [1.0, 1.5]
    assert drawn["peak memory"] == [1.0, 1.1]
    assert [bar.get_height() for bar in right.patches] == [4.0, 2.5]


@pytest.mark.parametrize("text", ["", "1,", "a", "0", "-1", "1.5"])
def test_counts_that_are_not_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="whole numbers"):
        _counts(text)


def test_alignment_is_measured_for_every_inner_rate_and_drawn(
    tmp_path: Path, make_tree: MakeTree, run_program: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.benchmarks.alignment.STEPS", 2)
    options = pool_options(tmp_path, make_tree("tree"), clients=3)
    assert run_program("simulations", "bench", "alignment", "--seeds", 1, *options)[0] == 0
    rows = json.loads((tmp_path / "out" / "alignment.json").read_text())["details"]["rows"]
    assert [row["path"] for row in rows] == [
        "all from the same point",
        "one after the other, α = 0.015",
        "one after the other, α = 0.149",
    ]
    assert all(len(row["cosines"]) == 4 and all(-1 <= each <= 1 for each in row["cosines"]) for row in rows)
    assert len({row["cosines"][0] for row in rows}) == 1, "all start from the same meta-learner"
    assert len({row["cosines"][1] for row in rows}) == 3
    assert (tmp_path / "out" / "alignment.png").stat().st_size > 1000


def squares(count: int) -> list[Loss]:
    """Of a network's outputs, each for other inputs."""
    inputs = torch.randn(count, 6, 4, generator=torch.Generator().manual_seed(0))
    return [lambda network, each=each: network(each).square().mean() for each in inputs]


def test_an_outer_step_of_the_inner_rate_ends_where_the_path_does() -> None:
    walked = torch.nn.Linear(4, 3)
    stepped, losses = copy.deepcopy(walked), squares(3)
    walk(torch.optim.SGD(walked.parameters(), 0.1), [partial(loss, walked) for loss in losses])
    outer_step(stepped, torch.optim.SGD(stepped.parameters(), 0.1), losses, 0.1)
    torch.testing.assert_close(stepped.state_dict(), walked.state_dict())


def test_two_tasks_of_the_same_gradient_are_aligned_and_a_reversed_one_is_not() -> None:
    network, (loss,) = torch.nn.Linear(4, 3), squares(1)
    cosine, product = alignment(network, [loss, lambda same: 2 * loss(same)])
    reversed_cosine, reversed_product = alignment(network, [loss, lambda same: -2 * loss(same)])
    assert (cosine, reversed_cosine) == (pytest.approx(1), pytest.approx(-1))
    assert product == pytest.approx(-reversed_product) and product > 0


@pytest.mark.slow
def test_speed_is_measured_against_the_published_configuration_and_from_scratch(
    tmp_path: Path, make_tree: MakeTree, run_program: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.benchmarks.recovery.MILESTONES", (1, 3))
    monkeypatch.setattr("simulations.benchmarks.recovery.STUDENT_STEPS", 2)
    monkeypatch.setattr("simulations.benchmarks.speed.peak", lambda *_: 1e9)
    options = pool_options(tmp_path, make_tree("tree", classes=6), clients=5)
    short = ("--repeats", 1, "--minutes", 0.001)
    assert run_program("simulations", "bench", "speed", *short, *options)[0] == 0
    measured = json.loads((tmp_path / "out" / "speed.json").read_text())["details"]
    loops = {loop["name"]: loop for loop in measured["inner_loops"]}
    assert loops["published"]["operations"] > 3 * loops["default"]["operations"]
    assert loops["default"]["share_of_peak"] == pytest.approx(
        loops["default"]["operations"] / loops["default"]["seconds"] / 1e9
    )
    assert [stage["name"] for stage in measured["stages"]] == ["invert", "ask teachers", "distil"]
    assert all(stage["bytes"] > 0 and stage["seconds"] > 0 for stage in measured["stages"])
    assert [pace["name"] for pace in measured["pace"]] == ["default", "published"]
    assert [pace["looks"][-1]["iterations"] for pace in measured["pace"]] == [2, 1]
    assert measured["recovery"]["ours"]["steps"] == 5
    assert [each["steps"] for each in measured["recovery"]["scratch"]] == [1, 3, 1, 3]
    assert (tmp_path / "out" / "speed.png").stat().st_size > 1000
