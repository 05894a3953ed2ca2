"""``serve``: what it refuses before it serves."""

from pathlib import Path

import pytest

from tests.programs import RunProgram


@pytest.mark.parametrize("address", ["localhost", "192.0.2.1:80"])
def test_a_place_for_metrics_that_cannot_be_had_is_one_line(
    address: str, tmp_path: Path, run_program: RunProgram
) -> None:
    words = ("serve", "--store", tmp_path / "run", "--insecure", "--listen", "127.0.0.1:0")
    status, _, said = run_program("server", *words, "--metrics", address)
    assert (status, said.count("\n")) == (2, 1), said
    assert address in said
