"""MERGE: the mean of models that began from one start."""

from collections.abc import Callable

import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import is_body
from server.learning.merge import merge_into, part_way
from server.learning.pool import Models, Pool

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
