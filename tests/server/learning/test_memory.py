"""Bounded memory: the oldest go first, and a saved state goes on as if nothing had happened."""

import torch

from fedfree.architectures import Architecture, InputSpec, build
from server.learning.invert import RecoveredTask
from server.learning.memory import Corpus, Memory, Ring
from server.learning.pool import Member

CPU = torch.device("cpu")
INPUT = InputSpec(channels=1, height=16, width=16)


def make_task(number: int, shade: float) -> RecoveredTask:
    network = build(Architecture(), num_classes=3, input=INPUT)
    member = Member(f"member-{number}", number, Architecture(), network, INPUT, 3, CPU)
    images = torch.full((6, 1, 16, 16), shade)
    return RecoveredTask(member, images, torch.arange(6) % 3, torch.tensor(0.0), torch.tensor(1.0))


def oldest_first(rows: Ring, name: str) -> torch.Tensor:
    return rows[name][rows.oldest_first()]


def test_the_oldest_are_forgotten_first_and_the_capacity_is_kept() -> None:
    memory, corpus = Memory(10, CPU), Corpus(10, CPU)
    for shade in (0.0, 0.5, 1.0):
        memory.add([make_task(0, shade)])
        corpus.add(torch.full((6, 1, 16, 16), shade), torch.full((6, 4), shade))
    for rows in (memory.rows, corpus.rows):
        assert oldest_first(rows, "images")[:, 0, 0, 0].tolist() == [128] * 4 + [255] * 6
    assert oldest_first(corpus.rows, "features")[:, 0].tolist() == [0.5] * 4 + [1.0] * 6
    assert len(memory) == len(corpus) == 10
    assert memory.rows.added == 18


def test_more_rows_at_once_than_the_capacity_leave_the_last_of_them() -> None:
    rows = Ring(4, CPU)
    rows.add({"value": torch.arange(3)})
    rows.add({"value": torch.arange(10, 19)})
    assert oldest_first(rows, "value").tolist() == [15, 16, 17, 18]


def test_a_restored_ring_goes_on_like_the_one_that_was_saved() -> None:
    for filled in (0, 3, 7, 12):
        rows, restored = Ring(5, CPU), Ring(5, CPU)
        if filled:
            rows.add({"value": torch.arange(filled)})
        restored.restore(rows.tensors())
        for each in (rows, restored):
            each.add({"value": torch.tensor([100, 101])})
        assert torch.equal(rows["value"], restored["value"])
        assert rows.added == restored.added == filled + 2


def test_the_gallery_shows_the_newest_image_of_each_class_of_each_model() -> None:
    memory = Memory(100, CPU)
    memory.add([make_task(4, 0.0), make_task(7, 0.2), make_task(4, 1.0)])
    gallery = memory.gallery()
    assert {number: images[:, 0, 0, 0].tolist() for number, images in gallery.items()} == {
        4: [255, 255, 255],
        7: [51, 51, 51],
    }
