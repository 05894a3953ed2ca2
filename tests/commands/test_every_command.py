"""Every command of the three programs in its ordinary use; one that is added must be walked too."""

import importlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from PIL import Image

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.release import this_release
from server.run import learn
from server.storage.run_directory import RunDirectory
from tests.programs import NAMES, PROGRAMS, RunProgram, run_here

IN_PROCESSES_OF_THEIR_OWN = {
    ("client", "up"): "tests/end_to_end/test_deployment.py",
    ("server", "up"): "tests/end_to_end/test_deployment.py",
}
"""Commands that run until they are told to end, with others beside them: their slow tests start them."""
SMALL_SERVER = {
    "invert": {
        "models_per_iteration": 2,
        "images_per_model": 12,
        "steps": 1,
        "latent_size": 8,
        "generator_width": 4,
    },
    "learn": {"batch_size": 8, "compositions": 4, "relational_tasks": 1},
}


def commands(program: str) -> Iterator[tuple[str, ...]]:
    """The words of every command of a program."""

    def below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(command, click.Group):
            yield words
            return
        for name, inner in command.commands.items():
            yield from below(inner, (*words, name))

    app = importlib.import_module(f"{program}.commands.main").app
    yield from below(typer.main.get_command(app), (program,))


@dataclass
class Walk:
    """A person at a terminal, who remembers which commands ended well."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    walked: set[tuple[str, ...]] = field(default_factory=set)

    def __call__(self, program: str, command: str, *arguments: object) -> str:
        words = tuple(command.split())
        ended, out, said = run_here(self.monkeypatch, self.capfd, program, *words, *arguments)
        assert not ended, f"{command}: {out}{said}"
        self.walked.add((program, *words))
        return out


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Walk:
    return Walk(monkeypatch, capfd)


def write_images(root: Path, *, classes: int, images: int, seed: int = 0) -> Path:
    """Colour images of 16 pixels a side, classes told apart by their shade."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(images):
            pixels = random.integers(0, 40, (16, 16, 3)) + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def write_checkpoint(path: Path) -> Path:
    torch.manual_seed(1)
    network = build(Architecture(), num_classes=3, input=InputSpec(3, 16, 16))
    safetensors.torch.save_file(network.state_dict(), path)
    return path


@contextmanager
def serving(store: Path, *options: str) -> Iterator[str]:
    """``fedfree-server serve`` as a process of its own, and the address that it says it listens on."""
    words = ("serve", "--store", str(store), "--listen", "127.0.0.1:0", "--insecure", *options)
    with started(words, "listening on ") as address:
        yield address


@contextmanager
def started(words: tuple[str, ...], says: str) -> Iterator[str]:
    """``fedfree-server`` with these words as a process of its own, and what follows ``says`` on a line."""
    command = [sys.executable, "-m", "server", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line.removeprefix(says).split()[0] for line in process.stdout if line.startswith(says))
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_every_command_is_walked(walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contribute_and_learn(walk, tmp_path)
    take_part_with_flower(walk, tmp_path)
    simulate(walk, tmp_path)
    measure(walk, tmp_path, monkeypatch)
    publish(walk, tmp_path)
    expected = {words for program in PROGRAMS for words in commands(program)}
    assert walk.walked | IN_PROCESSES_OF_THEIR_OWN.keys() == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_of_every_command_fits_a_screen_of_45_lines(
    program: str, run_program: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for _, *words in commands(program):
        lines = run_program(program, *words, "--help")[1].splitlines()
        assert 5 <= len(lines) <= 45, f"{' '.join(words)}: {len(lines)} lines"
        assert not [line for line in lines if line.startswith("  ") and line.endswith("...")], words


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_names_its_release(program: str, walk: Walk) -> None:
    assert walk(program, "--version") == f"fedfree-{NAMES.get(program, program)} {this_release()}\n"


@pytest.mark.parametrize(
    ("program", "name", "typed", "offered"),
    [
        ("simulations", "sim", "fedfree-sim sh", ["show"]),
        ("simulations", "sim", "fedfree-sim bench qu", ["quality"]),
        ("simulations", "sim", "fedfree-sim run --prese", ["--preset"]),
        ("client", "client", "fedfree-client start f", ["fetch"]),
        ("server", "server", "fedfree-server stat", ["status"]),
    ],
)
def test_a_shell_is_told_what_a_word_can_become(
    program: str,
    name: str,
    typed: str,
    offered: list[str],
    run_program: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"_FEDFREE_{name.upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert run_program(program)[1].split() == offered


def test_commands_that_are_walked_elsewhere_are_started_there() -> None:
    root = Path(__file__).parents[2]
    for (program, name), file in IN_PROCESSES_OF_THEIR_OWN.items():
        text = (root / file).read_text()
        assert f'"{name}"' in text and program in text


def contribute_and_learn(walk: Walk, folder: Path) -> None:
    """One organisation trains, another packs; both contribute; what is learned is fetched and used."""
    images = write_images(folder / "images", classes=3, images=8)
    small = ("--image-size", 16, "--epochs", 1, "--set", "training.min_steps=2", "--threads", 1)
    assert "24 images of 3 classes" in walk("client", "look", images, *small)
    assert "held-out accuracy" in walk("client", "pretrain", "--data", images, *small)
    assert "conv4-32-batch" in walk("client", "inspect", "contribution")
    assert "none. Nothing limits" in walk("client", "statement", "contribution")
    checkpoint = write_checkpoint(folder / "model.safetensors")
    network = ("--architecture", "conv4", "--classes", 3, "--image-size", 16)
    walk("client", "pack", checkpoint, *network, "--out", "packed")
    assert walk("client", "ledger").count("spent") == 2
    rehearsed = write_images(folder / "rehearsed", classes=2, images=60)
    assert "not evidence of safety" in walk("client", "rehearse", "--data", rehearsed, "--shadows", 4, *small)

    (folder / "limits.toml").write_text("[limits]\nimage_size = 16\nrecipe_steps = 0\n")
    limits = ("--limits", "limits.toml")
    known = ("--mean", "0.5,0.4,0.3", "--std", 0.5, "--source", "us", "--licence", "MIT")
    own = ("--weights", checkpoint, "--architecture", "conv4", "--image-size", 16)
    assert "wrote start" in walk("server", "start make", *own, *known)
    shown = walk("server", "start show", "start")
    assert "conv4-32-batch" in shown and walk("client", "start show", "start") == shown
    (folder / "begun-token").write_text(walk("server", "token add", "org-1", "--store", "begun"))
    with serving(folder / "begun", "--start", "start") as address:
        door = (address, "--insecure", "--token-file", "begun-token")
        assert "fetched holds" in walk("client", "start fetch", *door, *limits, "--out", "fetched")
    assert walk("server", "start show", "fetched") == shown

    token = walk("server", "token add", "org-1", "--store", "run").strip()
    (folder / "token").write_text(token)
    assert walk("server", "token list", "--store", "run") == "org-1\n"
    (folder / "run" / "server.toml").write_text(server_toml())
    with serving(folder / "run") as address:
        door = ("--insecure", "--token-file", "token")
        for model in ("contribution", "packed"):
            assert "received" in walk("client", "contribute", model, "--to", address, *door)
        assert "wrote" in walk("server", "learn", "run")
        assert "2 accepted" in walk("client", "status", "--from", address, *door)
        assert "wrote" in walk("client", "fetch", "--from", address, *door, *limits)
    walk.walked.add(("server", "serve"))
    own, new = walk("server", "key rotate", "--store", "run").split(" is replaced by\n")
    assert len(own) == 64 and walk("server", "key show", "--store", "run") == new
    assert walk("client", "provenance").endswith("2 of the 2 contributions there are yours\n")
    assert "accepted" in walk("server", "status", "run", "--contributions")
    page = ("status", str(folder / "run"), "--serve", "--listen", "127.0.0.1:0")
    with started(page, "the page is at ") as address, urllib.request.urlopen(address) as answer:
        assert "The meta-learner is published." in answer.read().decode()
    assert "wrote" in walk("server", "resume", "run")
    refused = next(iter((folder / "run" / "store" / "accepted").iterdir())).name
    (folder / "run" / "server.toml").write_text(server_toml().replace("[", "collect.quorum = 1\n[", 1))
    removing = ("run", "--without", refused[:10], "--why", "they asked")
    assert f"without {refused}" in walk("server", "retrain", *removing)
    walk("server", "token rotate", "org-1", "--store", "run", "--expires-days", 30)
    walk("server", "token revoke", "org-1", "--store", "run")

    new = write_images(folder / "new", classes=5, images=20, seed=1)
    assert "5-way 5-shot" in walk("client", "evaluate", "--data", new, "--episodes", 2, *limits)
    assert "wrote classifier.safetensors" in walk("client", "adapt", "--support", new, *limits)
    assert "class" in walk("client", "predict", new / "class0")
    assert "wrote classifier.onnx" in walk("client", "export", "--onnx", "classifier.onnx")


def server_toml() -> str:
    lines = ["iterations = 1", "threads = 1", 'device = "cpu"']
    for table, values in SMALL_SERVER.items():
        lines += [f"[{table}]", *(f"{name} = {value}" for name, value in values.items())]
    return "\n".join(lines)


def take_part_with_flower(walk: Walk, folder: Path) -> None:
    """Two directories that would be kept up."""
    walk("server", "init", "coordinator", "--name", "localhost")
    node = ("--server", "localhost:8000", "--ca", "coordinator/ca.crt", "--data", "images")
    walk("client", "init", "node", *node)
    assert "may take part" in walk("server", "enroll", "org-1", "node/node.key.pub", "--in", "coordinator")


def simulation_toml(folder: Path) -> Path:
    """A federation as small as one can be."""
    for split in ("meta_train", "meta_val", "meta_test"):
        write_images(folder / "tree" / split, classes=3, images=9)
    server = "\n".join(
        f"server.{table}.{name} = {value}"
        for table, values in SMALL_SERVER.items()
        for name, value in values.items()
    )
    (folder / "tiny.toml").write_text(
        f"""
        dataset = "{folder / "tree"}"
        clients = 4
        classes_each = 2
        images_per_class = 6
        episodes = 2
        n_way = 2
        n_query = 2
        cache = "{folder / "cache"}"
        training.image_size = 16
        training.epochs = 1
        training.threads = 1
        server.threads = 1
        server.iterations = 1
        {server}
        """
    )
    return folder / "tiny.toml"


def simulate(walk: Walk, folder: Path) -> None:
    """A federation planned, prepared and run."""
    tiny = ("--config", simulation_toml(folder), "--device", "cpu")
    few = (*tiny, "--set", "training.min_steps=2")
    assert "# --device" in walk("simulations", "config", *tiny)
    assert "flwr run" in walk("simulations", "prepare", *few, "--out", "prepared")
    planned = walk("simulations", "run", *few, "--clients", 2, "--out", "simulated", "--dry-run")
    assert "2 to be trained" in planned and not (folder / "simulated").exists()
    assert "report:" in walk("simulations", "run", *few, "--clients", 2, "--out", "simulated")
    begun = ("--start", folder / "start", "--clients", 2, "--out", "simulated-from-start")
    printed = walk("simulations", "run", *few, *begun)
    assert "public start, frozen" in printed and "Start: conv4-32-batch" in printed
    runs = "simulated", "simulated-from-start"
    listed = walk("simulations", "list", ".")
    assert all(run in listed for run in runs) and "prepared" in listed
    assert "public start, frozen" in walk("simulations", "show", runs[1])
    printed = walk("simulations", "compare", *runs)
    assert "simulated-from-start − simulated" in printed and "differences are paired" in printed
    assert json.loads(walk("simulations", "compare", *runs, "--json"))["settings"]["start"][0] == ""
    assert "wrote simulated/report.html" in walk("simulations", "report", runs[0])
    assert "wrote comparison.html" in walk("simulations", "report", *runs)


def measure(walk: Walk, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every benchmark and every attack, in miniature."""
    few = ("--config", folder / "tiny.toml", "--device", "cpu", "--set", "training.min_steps=2")
    walk("simulations", "bench quality", *few, "--seeds", 1, "--out", "quality")
    walk("simulations", "bench alignment", *few, "--iterations", 2, "--out", "alignment")
    monkeypatch.setattr("simulations.attacks.backdoor.STEPS", 1)
    monkeypatch.setattr("simulations.attacks.adaptive.STEPS", 1)
    hostile = ("--attacks", "noise,backdoor,adaptive", "--shares", "one")
    walk("simulations", "bench poison", *few, *hostile, "--out", "poison")
    monkeypatch.setattr("simulations.benchmarks.recovery.MILESTONES", (1, 2))
    monkeypatch.setattr("simulations.benchmarks.recovery.STUDENT_STEPS", 1)
    monkeypatch.setattr("simulations.benchmarks.timing.PEAK_BATCH", {"cpu": 1})
    monkeypatch.setattr("simulations.benchmarks.timing.COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr("simulations.benchmarks.speed._published", lambda server: server)  # minutes of work
    walk("simulations", "bench speed", *few, "--repeats", 1, "--minutes", 0, "--out", "speed")
    monkeypatch.setattr("simulations.benchmarks.scale.ITERATIONS", 2)
    one = "simulations.benchmarks.scale._torchrun"  # tests/server/test_run.py starts it
    monkeypatch.setattr(one, lambda run, processes: learn(RunDirectory(run)))
    walk("simulations", "bench scale", *few, "--models", "2", "--processes", "1", "--out", "scale")
    for split, images in (("meta_train", 60), ("meta_val", 9), ("meta_test", 9)):
        write_images(folder / "larger" / split, classes=3, images=images)
    sweep = (
        "--dataset",
        folder / "larger",
        "--clients",
        2,
        "--epsilon",
        "inf,8",
        "--seeds",
        1,
        "--shadows",
        4,
    )
    walk("simulations", "privacy sweep", *few, *sweep, "--set", "images_per_class=60", "--out", "sweep")
    audited = write_images(folder / "audited", classes=2, images=60)
    attack = (
        "--dataset",
        audited,
        "--classes",
        2,
        "--shadows",
        4,
        "--image-size",
        16,
        "--epochs",
        1,
        "--threads",
        1,
    )
    quick = ("student_steps=1", "student_iterations=1", "training.min_steps=2")
    settings = [word for each in quick for word in ("--set", each)]
    walk("simulations", "privacy audit", *attack, *settings, "--out", "audit")
    monkeypatch.setattr("simulations.federation.public_weights.resolve", lambda *_, **__: folder / "tree")
    walk(
        "simulations",
        "public-weights",
        "public.safetensors",
        "--image-size",
        16,
        "--set",
        "epochs=1",
        "--set",
        "min_steps=1",
    )


def publish(walk: Walk, folder: Path) -> None:
    """What a benchmark left becomes a table, in a clone's documents."""
    clone = folder / "clone"
    (clone / "docs").mkdir(parents=True)
    (clone / "simulations" / "results").mkdir(parents=True)
    name = json.loads((folder / "quality" / "quality.json").read_text())["name"]
    (clone / "README.md").write_text(f"<!-- table: {name} -->\n<!-- end -->\n")
    for document in ("results.md", "log.md"):
        (clone / "docs" / document).write_text("")
    walk("simulations", "results add", folder / "quality" / "quality.json", "--root", clone)
    assert "| --- |" in (clone / "README.md").read_text()
    walk("simulations", "results write", "--root", clone)
