"""A federation of real processes: a SuperLink with TLS and known keys, SuperNodes, and those it refuses."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import node
from client.config import ClientConfig, DataConfig, PretrainConfig
from fedfree.codec import decode_meta_learner
from fedfree.flower_process import free_port, processes
from server import deployment
from server.config import CollectConfig, InvertConfig, MetaLearnConfig, ServerConfig

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
ORGANISATIONS = ("org-0", "org-1")


def write_images(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(80 * label, 80 * label + 60, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


def coordinator(path: Path, port: int) -> deployment.Deployment:
    collect = CollectConfig(organisations=len(ORGANISATIONS), timeout_seconds=200)
    settings = deployment.DeploymentConfig(listen=f"127.0.0.1:{port}")
    made = deployment.init(path, ["127.0.0.1"], settings, collect)
    tiny = ServerConfig(
        device="cpu",
        threads=1,
        collect=collect,
        iterations=2,
        invert=InvertConfig(
            models_per_iteration=2, images_per_model=12, steps=2, latent_size=16, generator_width=8
        ),
        learn=MetaLearnConfig(compositions=8, relational_tasks=2, batch_size=8),
    )
    made.run.server_toml.write_text(tiny.to_toml())
    return made


def organisation(path: Path, port: int, authority: Path, seed: int) -> node.Node:
    config = node.NodeConfig(server=f"127.0.0.1:{port}", retries=2)
    data = write_images(path.with_name(f"{path.name}-images"), seed)
    made = node.init(path, config, authority, data)
    tiny = ClientConfig(
        data=DataConfig(source=data),
        pretrain=PretrainConfig(image_size=16, epochs=1, min_steps=2, batch_size=16, threads=1),
        cache=path / "cache",
        seed=seed,
    )
    made.client_toml.write_text(tiny.to_toml())
    return made


@contextmanager
def up(side: str, directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """``fedfree-server up`` or ``fedfree-client up``, told to end with its block."""
    code = f"import sys; from {side}.cli import main; sys.argv[1:] = ['up', {str(directory)!r}]; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=90)


@pytest.mark.slow
def test_enrolled_organisations_finish_a_run_and_others_are_refused_with_a_clear_word(tmp_path: Path) -> None:
    port = free_port()
    server = coordinator(tmp_path / "coordinator", port)
    stranger_authority = deployment.init(
        tmp_path / "other", ["127.0.0.1"], deployment.DeploymentConfig(), CollectConfig()
    ).authority
    members = [
        organisation(tmp_path / name, port, server.authority, seed) for seed, name in enumerate(ORGANISATIONS)
    ]
    misled = organisation(tmp_path / "misled", port, stranger_authority, 8)
    unknown = organisation(tmp_path / "unknown", port, server.authority, 9)
    for name, member in zip(ORGANISATIONS, members, strict=True):
        server.enroll(name, member.path / "node.key.pub")
    with ExitStack() as stack:
        refused = [stack.enter_context(up("client", each.path)) for each in (misled, unknown)]
        running = stack.enter_context(up("server", server.path))
        # The run waits for its members, so that the refusals come while it lasts.
        for process, status, word in zip(
            refused, (2, 1), ("unable to get local issuer certificate", "is not enrolled"), strict=True
        ):
            _, said = process.communicate(timeout=240)
            assert (process.returncode, word in said) == (status, True), said
            assert "Traceback" not in said
        nodes = [stack.enter_context(up("client", member.path)) for member in members]
        _, said = running.communicate(timeout=240)
        assert running.returncode == 0, said
        nodes[0].send_signal(signal.SIGTERM)
        assert nodes[0].wait(60) == 128 + signal.SIGTERM
    learned = decode_meta_learner(server.run.manifest.read_bytes(), server.run.weights.read_bytes())
    assert len(learned.provenance.contributions) == len(ORGANISATIONS)
    for directory in (server.path, *(member.path for member in members)):
        assert processes(directory / ".flwr") == []
    assert "org-0-images" not in server.run.events.read_text()
