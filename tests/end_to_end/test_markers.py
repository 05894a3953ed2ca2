"""A run over gRPC leaves nothing of an organisation's own at the server, and no secret outside its file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.programs import run_here

ROOT = Path(__file__).parents[2]
CLASS, FOLDER, FILE = "MARKERclassJaneDoe", "MARKERfolderWard7", "MARKERfilePatient"
SERVER_TOML = """iterations = 1
threads = 1
device = "cpu"
collect.quorum = 1
invert = { models_per_iteration = 1, images_per_model = 4, steps = 1, latent_size = 8, generator_width = 4 }
learn = { batch_size = 4, compositions = 2, relational_tasks = 1 }
"""


def write_images(root: Path) -> Path:
    random = np.random.default_rng(0)
    for label in range(3):
        (root / f"{CLASS}{label}").mkdir(parents=True)
        for index in range(8):
            pixels = (random.integers(0, 40, (16, 16, 3)) + 60 * label).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{CLASS}{label}" / f"{FILE}{index}.png")
    return root


class Party:
    """A side with a folder and a home of its own, where its programs' words are kept.

    What ends by itself runs in this process, as the program would.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        folder.mkdir()
        self.folder, self._program, self._calls = folder, program, 0
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def start(self, *words: str) -> "subprocess.Popen[str]":
        paths = {"FEDFREE_HOME": str(self.folder / "home"), "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        with (self.folder / "said.txt").open("w") as said:
            command = [sys.executable, "-m", self._program, *words]
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | paths,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, *words: str, token: str = "", status: int = 0, keep: bool = True) -> str:
        self._calls += 1
        with self._monkeypatch.context() as here:
            here.chdir(self.folder)
            here.setenv("FEDFREE_HOME", str(self.folder / "home"))
            if token:
                here.setenv("FEDFREE_TOKEN", token)
            ended, out, said = run_here(here, self._capfd, self._program, *words)
        (self.folder / f"said-{self._calls}.txt").write_text(said)
        assert ended == status, said
        if keep:
            (self.folder / f"printed-{self._calls}.txt").write_text(out)
        return out

    def holding(self, marker: str) -> Iterator[str]:
        """Files below the folder whose name or content holds a marker."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if marker in name or (path.is_file() and marker.encode() in path.read_bytes()):
                yield name


def test_a_run_leaves_nothing_private_at_the_server_and_no_secret_outside_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Party("server", tmp_path / "server", monkeypatch, capfd)
    client = Party("client", tmp_path / FOLDER, monkeypatch, capfd)
    token = server.run("token", "add", "org-1", "--store", "run", keep=False).strip()
    (server.folder / "run" / "server.toml").write_text(SERVER_TOML)
    images = write_images(client.folder / "images")
    small = ("--image-size", "16", "--epochs", "1", "--set", "training.min_steps=2", "--threads", "1")
    client.run("pretrain", "--data", str(images), *small)
    serving = server.start("serve", "--store", "run", "--listen", "127.0.0.1:0", "--insecure")
    assert serving.stdout is not None
    try:
        printed = []
        while not (printed and printed[-1].startswith("listening on ")):
            printed.append(next(serving.stdout))
        address = printed[-1].split()[-1]
        wrong = "MARKERwrongToken" + "x" * 27
        client.run("contribute", "contribution", "--to", address, "--insecure", token=wrong, status=2)
        client.run("contribute", "contribution", "--to", address, "--insecure", token=token)
        server.run("learn", "run")
        client.run("status", "--from", address, "--insecure", token=token)
        client.run("fetch", "--from", address, "--insecure", token=token)
    finally:
        serving.terminate()
        printed += serving.communicate(timeout=60)[0].splitlines()
    (server.folder / "printed-serve.txt").write_text("\n".join(printed))
    client.run("provenance", "contribution")
    client.run("adapt", "--support", str(images))
    private = (server.folder / "run" / "signing.json").read_text().split('"private": "')[1][:64]

    for marker in (CLASS, FOLDER, FILE, token, wrong):
        assert list(server.holding(marker)) == []
    for marker in (token, wrong, private):
        assert list(client.holding(marker)) == []
    assert list(server.holding(private)) == ["run/signing.json"]
    assert (server.folder / "run" / "signing.json").stat().st_mode & 0o077 == 0
    assert list(client.holding(CLASS)), "the markers would be found"
    sent = [client.folder / "contribution" / name for name in ("manifest.pb", "weights.safetensors")]
    assert not any(mark.encode() in each.read_bytes() for mark in (CLASS, FOLDER, FILE) for each in sent)
