"""Whole federations, one at a time in a folder."""

from pathlib import Path

import pytest
from simulations.federation.simulate import simulate

from fedfree.errors import ConfigError
from fedfree.host.lock import exclusive
from simulations.config import SimulationConfig


@pytest.mark.parametrize("held", [".", ".flwr"], ids=["a learner", "a simulation"])
def test_a_folder_in_which_another_process_works_is_refused_and_left_as_it_is(
    tmp_path: Path, held: str
) -> None:
    with exclusive(tmp_path / held), pytest.raises(ConfigError, match="another process runs in"):
        simulate(tmp_path, SimulationConfig(), command="fedfree-sim run")
    assert not any(path for path in tmp_path.iterdir() if not path.name.startswith("."))
