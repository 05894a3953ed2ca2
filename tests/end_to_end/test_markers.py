"""A run over gRPC leaves nothing of an organisation's own at the server, and no secret outside its file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

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
    """A side with a folder and a home of its own, whose programs' words are kept there."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._program, self._calls = folder, program, 0
        paths = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
        self._environment = os.environ | {"FEDFREE_HOME": str(folder / "home"), "PYTHONPATH": paths}

    def start(self, *words: str, token: str = "") -> "subprocess.Popen[str]":
        self._calls += 1
        environment = self._environment | ({"FEDFREE_TOKEN": token} if token else {})
        with (self.folder / f"said-{self._calls}.txt").open("w") as said:
            command = [sys.executable, "-m", self._program, *words]
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
            )

    def run(self, *words: str, token: str = "", status: int = 0, keep: bool = True) -> str:
        with self.start(*words, token=token) as process:
            out, _ = process.communicate(timeout=120)
        said = self.folder / f"said-{self._calls}.txt"
        assert process.returncode == status, said.read_text()
        if keep:
            (self.folder / f"printed-{self._calls}.txt").write_text(out)
        return out

    def holding(self, marker: str) -> Iterator[str]:
        """Files below the folder whose name or content holds a marker."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if marker in name or (path.is_file() and marker.encode() in path.read_bytes()):
                yield name


def test_a_run_leaves_nothing_private_at_the_server_and_no_secret_outside_its_file(tmp_path: Path) -> None:
    server, client = Party("server", tmp_path / "server"), Party("client", tmp_path / FOLDER)
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
