"""A run directory with contributions from organisations, for tests of what is shown of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, contribution_id, encode_contribution, encode_weights
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.storage.run_directory import RunDirectory

HandOver = Callable[..., str]


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    """A prepared run with an empty store."""
    folder = tmp_path / "federation"
    folder.mkdir()
    (folder / "server.toml").write_text(ServerConfig().to_toml())
    run = RunDirectory(folder)
    run.store()
    return run


@pytest.fixture
def hand_over() -> HandOver:
    """Let a model arrive, another with every seed, and return its id."""

    def hand_over(run: RunDirectory, *, seed: int = 0, organisation: str | None = None) -> str:
        spec = InputSpec(channels=1, height=16, width=16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = encode_weights(build(Architecture(), num_classes=3, input=spec))
        manifest = encode_contribution(Contribution(Architecture(), 3, spec, PrivacyStatement(), weights))
        upload = run.store().upload(manifest, organisation=organisation)
        upload.write(weights)
        upload.commit()
        upload.close()
        return contribution_id(manifest)

    return hand_over
