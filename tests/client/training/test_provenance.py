"""Whether one's own contributions are in what came back, as a person asks it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.training.cache import MANIFEST
from client.training.ledger import open_ledger
from fedfree.codec import MetaLearner, contribution_id, encode_meta_learner
from tests.programs import RunProgram


@pytest.fixture
def ask(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner], run_client: RunProgram
) -> Callable[..., tuple[int, str, str]]:
    """Two contributions, one of which the meta-learner was learned from."""
    for name in ("used", "unused"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_bytes(name.encode())
    sent = make_meta_learner()
    learned = replace(sent.provenance, contributions=(contribution_id(b"used"), "ab" * 32))
    sent = replace(sent, provenance=learned)
    (tmp_path / "m.safetensors").write_bytes(sent.weights)
    (tmp_path / "m.manifest.pb").write_bytes(encode_meta_learner(sent))

    def call(*names: str) -> tuple[int, str, str]:
        folders = [str(tmp_path / name) for name in names]
        return run_client("provenance", *folders, "--meta-learner", str(tmp_path / "m.safetensors"))

    return call


def test_what_is_named_is_said_to_be_there(ask: Callable[..., tuple[int, str, str]]) -> None:
    status, said, _ = ask("used")
    assert status == 0
    assert said.splitlines() == [
        f"{contribution_id(b'used')} is in the provenance",
        "1 of the 2 contributions there are yours",
    ]


def test_what_is_not_named_is_said_to_be_missing_and_ends_with_1(
    ask: Callable[..., tuple[int, str, str]],
) -> None:
    status, said, _ = ask("used", "unused")
    assert status == 1
    assert f"{contribution_id(b'unused')} is not in the provenance" in said


def test_without_a_folder_the_ledger_says_what_to_look_for(ask: Callable[..., tuple[int, str, str]]) -> None:
    status, _, refused = ask()
    assert status == 2 and "knows no contribution" in refused
    open_ledger(None).pack("0" * 64, frozenset(), contribution_id(b"unused"))
    assert ask()[0] == 1
    open_ledger(None).pack("1" * 64, frozenset(), contribution_id(b"used"))
    status, said, _ = ask()
    assert status == 0 and "is not in the provenance" in said
