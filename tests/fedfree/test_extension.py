"""The tables that somebody may extend: what is theirs takes the place of nothing of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from client.rehearsing.attacks import ATTACKS
from fedfree.adaptation import HEADS
from fedfree.architectures import ARCHITECTURES, Family
from fedfree.errors import DataError, ExtensionError
from fedfree.extension import Table
from server.learning.inversions import INVERSIONS
from server.storage.store import Store
from server.verify import rules
from server.verify.verify import verify_received
from simulations.baselines.table import BASELINES, Baseline
from simulations.federation.datasets import DATASETS, location


def mine(*_: object, **__: object) -> Any:
    """Somebody's own entry."""


@pytest.mark.parametrize(
    ("table", "name", "words"),
    [
        (ARCHITECTURES, "conv4", r"architecture 'conv4' comes with FedFREE \(fedfree\..*_conv4\)"),
        (HEADS, "ridge", r"head 'ridge' comes with FedFREE \(fedfree\.adaptation\.ridge\)"),
        (HEADS, "gradient", "head 'gradient' comes with FedFREE"),
        (INVERSIONS, "meta-generator", "inversion 'meta-generator' comes with FedFREE"),
        (DATASETS, "omniglot", "data set 'omniglot' comes with FedFREE"),
        (DATASETS, "glyphs", r"data set 'glyphs' comes with FedFREE \(simulations\..*write_tree\)"),
        (BASELINES, "best_single_model", "baseline 'best_single_model' comes with FedFREE"),
        (BASELINES, "meta_learner", "baseline 'meta_learner' comes with FedFREE"),
        (ATTACKS, "LiRA online", r"attack 'LiRA online' comes with FedFREE \(client\..*lira_online\)"),
    ],
)
def test_an_entry_of_ones_own_under_the_name_of_one_of_ours_is_refused_and_both_are_named(
    table: Table[Any], name: str, words: str
) -> None:
    entry = {"architecture": Family(mine), "baseline": Baseline("mine", mine)}.get(words.split()[0], mine)
    before = dict(table)
    with pytest.raises(ExtensionError, match=rf"the {words}.*: give yours \(.*mine\) another name"):
        table[name] = entry
    with pytest.raises(ExtensionError, match="another name"):
        table.update({name: entry})
    assert dict(table) == before


def test_an_entry_of_ones_own_may_be_replaced_and_one_of_ours_put_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HEADS, "own", mine)
    HEADS["own"] = lambda *_, **__: mine()
    HEADS["ridge"] = HEADS["ridge"]
    assert HEADS["own"] is not mine


@pytest.mark.parametrize("name", ["check_start", "check_tensor_names", "check_not_a_copy"])
def test_a_rule_of_ones_own_under_the_name_of_one_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def own(contribution: object, known: object) -> Mapping[str, float]:
        return {}

    own.__name__ = name
    monkeypatch.setattr(rules, "RULES", [*rules.RULES, own])
    with pytest.raises(ExtensionError, match=f"the rule '{rules.name_of(own)}' comes with FedFREE"):
        verify_received(Store(tmp_path), lambda _: None)


@pytest.mark.parametrize("name", ["../mine", "/mine", "a/b"])
def test_a_data_set_of_ones_own_whose_name_is_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(DATASETS, name, mine)
    with pytest.raises(DataError, match=f"the data set '{name}' would not lie in .*: name it without"):
        location(name, cache=tmp_path / "cache", seed=0, images_per_class=1)
