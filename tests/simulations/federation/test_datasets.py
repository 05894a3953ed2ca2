"""Resolving data sets by name, sharing classes out, and the picture."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from client.data.finding import list_classes, list_splits
from client.data.loading import load_images
from fedfree.errors import DataError, ExtensionError
from simulations.federation import datasets, glyphs

SHARED = Path(__file__).parents[4] / "shared" / "data"
NAMES = [f"{script}_{index}" for script in ("latin", "greek", "lao") for index in range(8)]


def share(how: Any, organisations: int = 4, classes_each: int = 5, seed: int = 0) -> list[tuple[str, ...]]:
    return datasets.partition(
        NAMES, organisations=organisations, classes_each=classes_each, how=how, seed=seed
    )


@pytest.fixture
def small_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "SCRIPTS", {"meta_test": {"latin": "ABC", "greek": "\u03b4"}})


@pytest.mark.usefixtures("small_glyphs")
def test_glyphs_are_written_once_and_reused(tmp_path: Path) -> None:
    path = datasets.resolve("glyphs", cache=tmp_path / "cache", seed=3, images_per_class=2)
    assert path == tmp_path / "cache" / "glyphs-v1-seed3-2.zip"
    written = path.stat().st_mtime_ns
    assert datasets.resolve("glyphs", cache=tmp_path / "cache", seed=3, images_per_class=2) == path
    assert path.stat().st_mtime_ns == written
    assert datasets.resolve("glyphs", cache=tmp_path / "cache", seed=4, images_per_class=2) != path


def test_a_path_is_returned_as_it_is_and_an_absent_one_is_refused(tmp_path: Path) -> None:
    assert datasets.resolve(str(tmp_path), cache=tmp_path, seed=0, images_per_class=1) == tmp_path
    with pytest.raises(
        DataError, match="no such data set or path: mnist; use glyphs, omniglot, cifar-fs, or"
    ):
        datasets.resolve("mnist", cache=tmp_path, seed=0, images_per_class=1)
    with pytest.raises(DataError, match="images_per_class is at least 1, got 0"):
        datasets.resolve("glyphs", cache=tmp_path, seed=0, images_per_class=0)


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("bad md5"), OSError("disk full")])
@pytest.mark.parametrize(("name", "dataset"), [("omniglot", "Omniglot"), ("cifar-fs", "CIFAR100")])
def test_a_failed_download_says_what_to_pass_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, name: str, dataset: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"torchvision.datasets.{dataset}", fail)
    with pytest.raises(DataError, match=f"cannot download {name} .*pass the path of a zip or folder"):
        datasets.resolve(name, cache=tmp_path, seed=0, images_per_class=1)
    assert list(tmp_path.iterdir()) == []


def test_omniglot_is_split_by_alphabet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(root: str, *, background: bool, download: bool) -> SimpleNamespace:
        folder = Path(root) / ("background" if background else "evaluation")
        for alphabet in ("Early_Aramaic", "Latin") if background else ("Tengwar",):
            for character in ("character01", "character02"):
                (folder / alphabet / character).mkdir(parents=True)
                Image.new("1", (105, 105)).save(folder / alphabet / character / "0001_01.png")
        return SimpleNamespace(target_folder=str(folder))

    monkeypatch.setattr("torchvision.datasets.Omniglot", fake)
    source = datasets.resolve("omniglot", cache=tmp_path, seed=0, images_per_class=1)
    assert [tuple(list_classes(source, split)) for split in list_splits(source)] == [
        ("Early_Aramaic.character01", "Early_Aramaic.character02"),
        ("Latin.character01", "Latin.character02"),
        ("Tengwar.character01", "Tengwar.character02"),
    ]
    assert load_images(source, split="meta_val").images.shape == (2, 1, 105, 105)
    assert list(tmp_path.iterdir()) == [source]


def test_cifar_fs_joins_both_parts_of_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(root: str, *, train: bool, download: bool) -> SimpleNamespace:
        data = np.full((4, 32, 32, 3), 10 if train else 20, np.uint8)
        return SimpleNamespace(data=data, targets=[0, 1, 2, 3], classes=["apple", "wolf", "otter", "worm"])

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fake)
    source = datasets.resolve("cifar-fs", cache=tmp_path, seed=0, images_per_class=1)
    assert list_classes(source, "meta_train") == {"apple": 2, "wolf": 2}
    assert list_classes(source, "meta_val") == {"otter": 2}
    assert list_classes(source, "meta_test") == {"worm": 2}
    assert load_images(source, split="meta_train").images[:, 0, 0, 0].tolist() == [20, 10, 20, 10]


def test_the_cifar_fs_lists_are_those_of_the_shared_archive() -> None:
    assert (len(datasets.CIFAR_FS_VAL), len(datasets.CIFAR_FS_TEST)) == (16, 20)
    if not (SHARED / "cifar-fs.zip").exists():
        pytest.skip("needs ../shared/data/cifar-fs.zip")
    assert tuple(list_classes(SHARED / "cifar-fs.zip", "meta_val")) == datasets.CIFAR_FS_VAL
    assert tuple(list_classes(SHARED / "cifar-fs.zip", "meta_test")) == datasets.CIFAR_FS_TEST


@pytest.mark.parametrize("how", ["disjoint", "overlapping", "domain"])
def test_each_organisation_gets_distinct_classes_and_the_seed_decides_which(how: str) -> None:
    shares = share(how)
    assert [len(set(names)) for names in shares] == [5] * 4
    assert all(set(names) <= set(NAMES) for names in shares)
    assert shares == share(how) != share(how, seed=1)


@pytest.mark.parametrize("how", ["disjoint", "overlapping", "domain"])
def test_the_order_in_which_classes_come_does_not_matter(how: Any) -> None:
    backwards = datasets.partition(NAMES[::-1], organisations=4, classes_each=5, how=how, seed=0)
    assert backwards == share(how)


def test_disjoint_gives_no_class_twice_and_refuses_the_impossible() -> None:
    shares = share("disjoint", organisations=4, classes_each=6)
    assert sorted(name for names in shares for name in names) == sorted(NAMES)
    with pytest.raises(
        DataError, match=r"5 organisations with 5 classes each need 25 classes, got 24.*overlap"
    ):
        share("disjoint", organisations=5)


def test_overlapping_draws_from_all_classes_each_time() -> None:
    shares = share("overlapping", organisations=40, classes_each=12)
    counts = Counter(name for names in shares for name in names)
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 8
    with pytest.raises(DataError, match="cannot draw 25 classes from 24"):
        share("overlapping", classes_each=25)


def test_domains_take_turns_and_repeat_only_when_used_up() -> None:
    shares = share("domain", organisations=6, classes_each=4)
    domains = [{datasets.domain_of(name) for name in names} for names in shares]
    assert all(len(domain) == 1 for domain in domains)
    assert Counter(domain.pop() for domain in domains) == {"latin": 2, "greek": 2, "lao": 2}
    assert sorted(name for names in shares for name in names) == sorted(NAMES)
    assert all(len(set(names)) == 5 for names in share("domain", organisations=9))


def test_domains_too_small_are_left_out_until_none_is_left() -> None:
    shares = datasets.partition([*NAMES, "ogham_1"], organisations=8, classes_each=8, how="domain", seed=0)
    assert "ogham_1" not in {name for names in shares for name in names}
    with pytest.raises(DataError, match="no domain has 9 classes: the largest of 3 domains has 8"):
        share("domain", classes_each=9)


def test_no_organisations_or_classes_are_refused() -> None:
    with pytest.raises(DataError, match="got 0 with 5"):
        share("disjoint", organisations=0)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("greek_U+03B1", "greek"),
        ("Early_Aramaic.character01", "Early_Aramaic"),
        ("Japanese_(katakana).character07", "Japanese_(katakana)"),
        ("birds/black_swan.2", "birds"),
        ("skin-a_1", "skin"),
        ("n02233338", "n02233338"),
    ],
)
def test_the_domain_is_the_first_part_of_the_name(name: str, domain: str) -> None:
    assert datasets.domain_of(name) == domain


def test_omniglot_small_falls_into_alphabets() -> None:
    if not (SHARED / "omniglot-small.zip").exists():
        pytest.skip("needs ../shared/data/omniglot-small.zip")
    names = list(list_classes(SHARED / "omniglot-small.zip", "meta_train"))
    shares = datasets.partition(names, organisations=5, classes_each=5, how="domain", seed=0)
    assert len({datasets.domain_of(names[0]) for names in shares}) == 5


def test_a_data_set_of_ones_own_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(datasets.DATASETS, "own", lambda folder: iter([1]))
    with pytest.raises(ExtensionError, match="the data set 'own' failed: TypeError"):
        datasets.resolve("own", cache=tmp_path, seed=0, images_per_class=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("members", [[], [("own/a/readme.txt", b"no image")]])
def test_a_data_set_of_ones_own_without_an_image_is_named_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, members: list[tuple[str, bytes]]
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "own", lambda folder: iter(members))
    with pytest.raises(DataError, match="the data set 'own' gave no image"):
        datasets.resolve("own", cache=tmp_path, seed=0, images_per_class=1)
    assert not list(tmp_path.iterdir())
