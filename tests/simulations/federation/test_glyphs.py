"""The embedded data set: enough classes, no two alike, hard enough, and the same on every run."""

import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from client.data.finding import list_classes, list_splits
from client.data.loading import load_images
from fedfree.episodes import EpisodeSpec, mean_and_ci95, sample_episode
from fedfree.errors import DataError
from simulations.federation import glyphs
from simulations.federation.datasets import domain_of

EVERY_CLASS = [name for split in glyphs.SCRIPTS for name in glyphs.class_names(split)]


def test_there_are_classes_enough_in_every_split() -> None:
    train, val, test = (len(glyphs.class_names(split)) for split in glyphs.SCRIPTS)
    assert train >= 200
    assert val >= 40
    assert test >= 60
    assert train + val + test >= 300


def test_no_class_and_no_script_is_in_two_splits() -> None:
    assert len(set(EVERY_CLASS)) == len(EVERY_CLASS)
    scripts = [{domain_of(name) for name in glyphs.class_names(split)} for split in glyphs.SCRIPTS]
    assert sum(map(len, scripts)) == len(set.union(*scripts))


def test_every_character_draws_ink_in_at_least_two_faces() -> None:
    for name in EVERY_CLASS:
        masks = glyphs._masks(glyphs._character(name))
        assert len(masks) >= 2, name
        assert masks[:, 0].sum((1, 2)).min() > 20, name


def test_no_two_classes_look_alike_in_plain_print() -> None:
    prints = torch.stack([glyphs._masks(glyphs._character(name))[0, 0] for name in EVERY_CLASS])
    blurred = F.avg_pool2d(prints[:, None], 3, 1, 1).flatten(1)
    centred = F.normalize(blurred - blurred.mean(1, keepdim=True), dim=1)
    likeness = (centred @ centred.T).fill_diagonal_(0)
    worst = int(likeness.argmax())
    pair = (EVERY_CLASS[worst // len(EVERY_CLASS)], EVERY_CLASS[worst % len(EVERY_CLASS)])
    assert likeness.max() < 0.92, pair


def test_no_face_draws_two_classes_the_same() -> None:
    seen: dict[tuple[str, bytes], str] = {}
    for name in EVERY_CLASS:
        character = glyphs._character(name)
        for face, mask in zip(glyphs._faces(character), glyphs._masks(character), strict=True):
            twin = seen.setdefault((face, mask[0].numpy().tobytes()), name)
            assert twin == name, f"{name} and {twin} in {face}"


def test_an_image_depends_on_seed_class_and_index_alone() -> None:
    alpha, ain = "greek_U+03B1", "arabic_U+0639"
    few = glyphs.render([alpha], 3, seed=1)
    many = glyphs.render([ain, alpha], 40, seed=1)
    assert few.shape == (3, 1, 32, 32)
    assert few.dtype == torch.uint8
    assert few.equal(many[40:43])
    assert not few.equal(glyphs.render([alpha], 3, seed=2))
    assert len(many.flatten(1).unique(dim=0)) == 80


def test_ink_is_dark_on_light_paper_and_not_cut_off() -> None:
    images = glyphs.render(EVERY_CLASS[::4], 5, seed=0).float().squeeze(1)
    paper = images.flatten(1).median(1).values
    assert paper.min() > 150
    darkest = images.flatten(1).quantile(0.02, dim=1)
    assert (paper - darkest).min() > 40
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    inked = border < ((paper + darkest) / 2)[:, None]
    assert ((inked.sum(1) >= 4).float().mean()) < 0.03


def test_raw_pixels_do_not_solve_the_episodes() -> None:
    names = glyphs.class_names("meta_test")
    pixels = glyphs.render(names, 16, seed=0).flatten(1).float()
    labels = torch.arange(len(names)).repeat_interleave(16)
    generator = torch.Generator().manual_seed(0)
    accuracies = []
    for _ in range(250):
        episode = sample_episode(labels, EpisodeSpec(5, 1, 10), generator=generator)
        nearest = torch.cdist(pixels[episode.query], pixels[episode.support]).argmin(1)
        accuracies.append((episode.support_labels[nearest] == episode.query_labels).double().mean().item())
    accuracy = mean_and_ci95(accuracies)
    assert 30 < accuracy.mean < 55, str(accuracy)


def test_the_zip_reads_back_as_rendered_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = glyphs.write_tree(tmp_path / "new" / "a.zip", seed=5, images_per_class=2)
    second = glyphs.write_tree(tmp_path / "b.zip", seed=5, images_per_class=2)
    assert first.read_bytes() == second.read_bytes()
    assert (
        first.read_bytes() != glyphs.write_tree(tmp_path / "b.zip", seed=6, images_per_class=2).read_bytes()
    )
    assert list_splits(first) == tuple(glyphs.SCRIPTS)
    for split in glyphs.SCRIPTS:
        assert list_classes(first, split) == dict.fromkeys(glyphs.class_names(split), 2)
    images = load_images(first, split="meta_val")
    assert images.class_names == glyphs.class_names("meta_val")
    assert images.images.equal(glyphs.render(images.class_names, 2, seed=5))


def test_a_broken_off_write_leaves_nothing(tmp_path: Path) -> None:
    def broken_off():  # type: ignore[no-untyped-def]
        yield "a.png", b"1"
        raise KeyboardInterrupt

    (tmp_path / "set.zip").write_bytes(b"what was there")
    with pytest.raises(KeyboardInterrupt):
        glyphs.write_zip(tmp_path / "set.zip", broken_off())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("set.zip", b"what was there")]


def test_members_are_stored_without_a_clock(tmp_path: Path) -> None:
    with zipfile.ZipFile(glyphs.write_zip(tmp_path / "set.zip", [("a", b"1")])) as archive:
        (info,) = archive.infolist()
    assert info.date_time == (1980, 1, 1, 0, 0, 0)
    assert info.compress_type == zipfile.ZIP_STORED


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="no split 'train' in glyphs: it has meta_train"):
        glyphs.class_names("train")
    with pytest.raises(DataError, match="no class 'greek_A' in glyphs"):
        glyphs.render(["greek_A"], 1, seed=0)
