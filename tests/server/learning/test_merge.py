"""MERGE: the mean of models that began from one start."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import decode_contribution, encode_contribution, encode_tensors, is_body
from fedfree.start import LoadedStart, trained_tensors
from server.config import MetaLearnConfig, ServerConfig
from server.events import ignore
from server.learning.merge import EXACTLY, _directions, further_means, merge_into, part_way
from server.learning.pool import Models, Pool
from server.learning.state import begin
from server.storage.store import ACCEPTED, Store
from server.verify.verify import verify_received

GREY = InputSpec(channels=1, height=16, width=16)


def pool_of(models: Models) -> Pool:
    return Pool(models, ["0", "1", "2"], torch.device("cpu"))


def test_the_body_is_the_mean_to_the_bit_and_the_head_stays(make_models: Callable[..., Models]) -> None:
    pool = pool_of(make_models())
    network = build(Architecture(), num_classes=7, input=GREY)
    head = network.head.weight.clone()
    merge_into(network, pool)
    states = [pool.member(number).network.state_dict() for number in range(3)]
    for name, tensor in network.state_dict().items():
        if is_body(name):
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(tensor, mean.to(tensor.dtype), rtol=0, atol=1e-7)
    assert network.head.weight.equal(head)


def test_what_all_models_share_comes_out_to_the_bit(make_models: Callable[..., Models]) -> None:
    pool = pool_of(make_models())
    first = pool.member(0).network
    for number in (1, 2):
        pool.member(number).network.load_state_dict(first.state_dict())
    network = build(Architecture(), num_classes=3, input=GREY)
    merge_into(network, pool)
    state = first.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items() if is_body(name))


def test_part_of_the_way_to_what_was_learned_is_between_weight_by_weight() -> None:
    mean, learned = (build(Architecture(), num_classes=3, input=GREY) for _ in range(2))
    quarter, whole = part_way(mean, learned, 0.25), part_way(mean, learned, 1.0)
    ends = mean.state_dict(), learned.state_dict()
    assert not ends[0]["head.weight"].equal(ends[1]["head.weight"])
    for name, tensor in quarter.state_dict().items():
        assert whole.state_dict()[name].equal(ends[1][name])
        torch.testing.assert_close(tensor, (0.75 * ends[0][name] + 0.25 * ends[1][name]).to(tensor.dtype))


def test_each_start_has_the_mean_of_its_own_models(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    first, further = make_start(0), [make_start(seed, architecture="conv4-64-group") for seed in (1, 2, 3)]
    store = Store(tmp_path, lambda: first, lambda: further)
    models = {
        begun.start.sha256: [store.receive(*contribute_from(begun, seed)) for seed in range(count)]
        for begun, count in zip((first, *further), (2, 3, 1, 0), strict=True)
    }
    verify_received(store, ignore)
    pool = Pool(store, store.ids(ACCEPTED), torch.device("cpu"))
    merged = build(Architecture(), num_classes=3, input=GREY)
    merge_into(merged, pool)
    (other,) = further_means(pool)  # one model is its own mean
    assert other.architecture == further[0].start.architecture and not other.network.training
    for begun, network in ((first, merged), (further[0], other.network)):
        name = "blocks.3.0.weight"
        own = [store.network(each)[1].get_parameter(name) for each in models[begun.start.sha256]]
        torch.testing.assert_close(network.get_parameter(name), torch.stack(own).mean(0))


def test_the_means_of_further_starts_teach_on_images_of_every_shape(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    first, other = make_start(0), make_start(1, architecture="conv4-64-group", channels=3)
    store = Store(tmp_path, lambda: first, lambda: [other])
    for begun in (first, other):
        for seed in range(2):
            store.receive(*contribute_from(begun, seed))
    verify_received(store, ignore)
    learn = MetaLearnConfig(min_alike=2, batch_size=8)
    state = begin(
        Pool(store, store.ids(ACCEPTED), torch.device("cpu")),
        ServerConfig(preset="start", threads=1, learn=learn),
    )
    names = [[str(member.architecture) for member in each.members] for each in state.teachers]
    grey, colour, mean = ["conv4-32-batch"] * 2, ["conv4-64-group"] * 2, ["conv4-64-group"]
    assert names == [grey + mean, colour + mean]


def store_of(
    folder: Path,
    start: LoadedStart,
    contribute_from: Callable[..., tuple[bytes, bytes]],
    hostile: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    honest: int = 5,
    crowd: int = 1,
) -> Pool:
    """Models that went one way from the start, each with something of its own; the last ones may differ.

    Args:
        crowd: models after the honest ones, all of one organisation.
    """
    common = {
        name: torch.randn_like(tensor) for name, tensor in start.body.items() if name.endswith("weight")
    }
    store = Store(folder, lambda: start)
    for seed in range(honest + crowd):
        contribution = decode_contribution(*contribute_from(start, seed))
        network = contribution.network(start.body)
        state = network.state_dict()
        for name, direction in common.items():
            moved = 0.01 * (direction + 2 * torch.randn_like(direction))
            if hostile and seed >= honest:
                moved = hostile(moved)
            state[name].copy_(start.body[name] + moved)
        sent = replace(contribution, weights=encode_tensors(trained_tensors(network, start.body)))
        organisation = f"org-{min(seed, honest)}"
        store.receive(encode_contribution(sent), sent.weights, organisation=organisation)
    verify_received(store, ignore)
    return Pool(store, store.ids(ACCEPTED), torch.device("cpu"))


@pytest.mark.parametrize("exactly", [EXACTLY, 5])
@pytest.mark.parametrize(("times", "words"), [(12.0, "was cut"), (-1.0, "against the others")])
def test_one_model_does_not_move_the_robust_mean_as_far_as_it_likes(
    times: float,
    words: str,
    exactly: int,
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.learning.merge.EXACTLY", exactly)
    torch.manual_seed(0)
    start, name = make_start(0), "blocks.3.0.weight"
    pool = store_of(tmp_path / "hostile", start, contribute_from, lambda moved: times * moved)
    plain, robust = (build(Architecture(), num_classes=3, input=GREY) for _ in range(2))
    assert len(pool) == 6
    assert merge_into(plain, pool) == {}
    trusts = merge_into(robust, pool, robust=True)
    (doubted,) = [each for each in trusts.values() if each.weight < 1]
    assert words in doubted.evidence and doubted.weight < 0.7
    honest = [number for number, each in enumerate(pool.ids) if trusts[each].weight == 1]
    mean = torch.stack([pool.member(each).network.get_parameter(name) for each in honest]).mean(0)
    far, near = ((each.get_parameter(name) - mean).norm() for each in (plain, robust))
    assert near < 0.5 * far and near < (mean - start.body[name]).norm()


def test_honest_models_have_the_plain_mean_to_the_bit(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    torch.manual_seed(0)
    pool = store_of(tmp_path, make_start(0), contribute_from)
    plain, robust = (build(Architecture(), num_classes=3, input=GREY) for _ in range(2))
    merge_into(plain, pool)
    trusts = merge_into(robust, pool, robust=True)
    assert {each.weight for each in trusts.values()} == {1.0}
    state = plain.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in robust.state_dict().items() if is_body(name))


def test_sketches_say_the_cosines_of_differences_to_within_three_hundredths(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    start = make_start(0)
    pool = store_of(tmp_path, start, contribute_from, lambda moved: -moved)
    kept = {name: torch.linspace(0.5, 1, 6) for name in start.body if name.endswith("weight")}

    def cosines() -> torch.Tensor:
        rows = _directions(pool, start.body, range(6), kept)
        return (rows @ rows.T).fill_diagonal_(0)

    exact = cosines()
    assert exact.min() < -0.1 < 0.1 < exact.max()
    monkeypatch.setattr("server.learning.merge.EXACTLY", 5)
    sketched = cosines()
    torch.testing.assert_close(sketched, exact, atol=0.03, rtol=0, check_dtype=False)
    pool.ids[0] = "another"
    assert not cosines().equal(sketched)


@pytest.mark.parametrize("times", [-1.0, 12.0])
def test_nor_does_one_organisation_that_sent_most_of_the_models(
    times: float,
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    torch.manual_seed(0)
    pool = store_of(tmp_path, make_start(0), contribute_from, lambda moved: times * moved, crowd=8)
    trusts = merge_into(build(Architecture(), num_classes=3, input=GREY), pool, robust=True)
    weights: dict[str | None, list[float]] = {}
    for number, identity in enumerate(pool.ids):
        weights.setdefault(pool.organisation(number), []).append(trusts[identity].weight)
    crowd = weights.pop("org-5")
    assert len(crowd) == 8 and sum(crowd) < 0.7, "it has no more than one share, bounded besides"
    assert list(weights.values()) == [[1.0]] * 5, "and takes nobody else's"


def test_of_three_organisations_none_moves_the_mean_as_far_as_it_likes(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    torch.manual_seed(0)
    start, name = make_start(0), "blocks.3.0.weight"

    def moved(times: float) -> float:
        pool = store_of(tmp_path / f"{times}", start, contribute_from, lambda each: times * each, honest=2)
        network = build(Architecture(), num_classes=3, input=GREY)
        merge_into(network, pool, robust=True)
        return float((network.get_parameter(name).detach() - start.body[name]).norm())

    assert moved(1000.0) < 2.5 * moved(1.0)
