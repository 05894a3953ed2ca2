"""Of two commands at once on one folder the second is refused, and the first is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedfree.host.lock import exclusive
from simulations.commands import bench, privacy

COMMANDS = [
    (each, one.name or getattr(one.callback, "__name__", ""))
    for each in (bench, privacy)
    for one in each.app.registered_commands
]


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_a_measurement_in_a_folder_that_another_holds_is_refused(
    tmp_path: Path, run_program: Callable[..., tuple[int, str, str]], group: object, name: str
) -> None:
    out, program = tmp_path / "out", "bench" if group is bench else "privacy"
    with exclusive(out):
        status, _, said = run_program("simulations", program, name, "--out", out)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: another process runs in {out}: process ")
    assert [path.name for path in out.iterdir()] == [".lock"]
