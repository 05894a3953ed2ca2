"""The bash blocks of the documents, each typed once, as printed, by those whom its page tells to.

What stands for another thing is said here: hosts, ports, folders, and settings that make a command short.
"""

import importlib.util
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors.torch
import timm

from client.config import ClientConfig, DataConfig, TrainingConfig
from fedfree.host.flower_process import free_port
from server.config import CollectConfig, InvertConfig, MetaLearnConfig, ServerConfig
from tests.pages import ROOT, Page, draw

pytestmark = pytest.mark.slow
MEMBERS = {"org-0": "images-0", "org-1": "images-1"}
SMALL = ServerConfig(
    threads=1,
    iterations=2,
    collect=CollectConfig(organisations=len(MEMBERS), quorum=1, deadline_hours=0.2),
    invert=InvertConfig(models_per_iteration=2, images_per_model=12, steps=1, generator_width=4),
    learn=MetaLearnConfig(batch_size=8, compositions=4, relational_tasks=1),
)
A_FILE_OF_ONES_OWN = (
    "--weights ../resnet18.safetensors --licence MIT --source nobody --mean 0.5 --std 0.5 --image-size 32"
)
"""In place of a download."""
SHORT_ATTACKS = {
    "--dataset glyphs": "--dataset images.zip",
    "--shadows 16": "--shadows 4",
    "privacy audit": "privacy audit --config audit.toml",
    "privacy sweep": "privacy sweep --config small.toml --images-per-class 40 --shadows 4",
}
AUDIT = """
images_per_class = 40
student_iterations = 1
student_steps = 2
[training]
epochs = 1
min_steps = 2
threads = 1
"""
SIMULATION = """
clients = 2
classes_each = 3
images_per_class = 20
episodes = 4
[training]
epochs = 1
min_steps = 2
threads = 1
[server]
threads = 1
iterations = 1
[server.invert]
models_per_iteration = 2
images_per_model = 12
steps = 1
generator_width = 4
[server.learn]
batch_size = 8
compositions = 4
relational_tasks = 1
"""


def until(process: "subprocess.Popen[str]", word: str) -> str:
    """What a command prints, to the line with this word."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            break
    assert word in "".join(lines), "".join(lines)
    return "".join(lines)


def pack(archive: Path) -> None:
    """Photos with the splits that a simulation needs, in a zip and beside it in a folder of that name."""
    folder = archive.with_suffix("")
    for split in ("meta_train", "meta_val", "meta_test"):
        draw(folder / split, classes=6, images=40)
    shutil.make_archive(str(folder), "zip", folder)


def prepare(page: Page, place: Path, server: ServerConfig, preparing: str, joining: str, let_in: str) -> None:
    """A coordinator and its members, each in a directory of ``place``."""
    place.mkdir()
    page.run(preparing, place)
    (place / "coordinator" / "server.toml").write_text(server.to_toml())
    shutil.copy(place / "coordinator" / "ca.crt", place)
    for seed, (member, images) in enumerate(MEMBERS.items()):
        data = draw(place / images, classes=3, images=8 + seed)
        page.run(joining.replace("org-0", member).replace("images-0", images), place)
        training = TrainingConfig(image_size=32, epochs=1, min_steps=2, threads=1)
        config = ClientConfig(data=DataConfig(source=data), training=training, seed=seed)
        (place / member / "client.toml").write_text(config.to_toml())
        shutil.copy(place / member / "node.key.pub", place)
        page.run(let_in.replace("org-0", member), place)


def take_part(page: Page, place: Path, coordinator: str, member: str) -> str:
    """What the coordinator's command prints until it ends well, with every member's beside it."""
    with ExitStack() as stack:
        running = stack.enter_context(page.running(coordinator, place))
        for name in MEMBERS:
            stack.enter_context(page.running(member.replace("org-0", name), place))
        said, _ = running.communicate()
        assert running.returncode == 0, said
    return said


def test_a_federation_across_machines_and_how_it_is_kept_up(tmp_path: Path) -> None:
    fleet, door = (f"127.0.0.1:{free_port()}" for _ in range(2))
    page = Page(
        "docs/deploy.md",
        tmp_path,
        {
            "--name fed.example.org": f"--name 127.0.0.1 --listen {fleet}",
            "fed.example.org:8443": fleet,
            "fed.example.org:9443": door,
            "0.0.0.0:9443": door,
            "--image-size 128": "--image-size 32",
            "timm/resnet18": f"--architecture timm/resnet18 {A_FILE_OF_ONES_OWN}",
        },
    )
    preparing, joining = page.block("fedfree-server init"), page.block("fedfree-client init org-0 --server")
    letting_in, up = page.block("fedfree-server enroll").splitlines()
    member = page.block("fedfree-client up org-0")
    token, serve = page.block("fedfree-server token add").splitlines()

    place = tmp_path / "from-random-weights"
    prepare(page, place, SMALL, preparing, joining, letting_in)
    assert "wrote coordinator/meta_learner.safetensors" in take_part(page, place, up, member)

    pin = page.block("fedfree-client init org-0 … --coordinator-key KEY").replace("org-0 …", "org-2 …")
    key = page.run("fedfree-server key show --store coordinator", place).split()[-1]
    new_member, fetch = pin.replace("KEY", key).splitlines()
    page.environment["FEDFREE_TOKEN"] = page.run(token, place).split()[0]
    with page.running(serve, place) as listening:
        until(listening, "listening on")
        page.run(new_member.replace("…", f"--server {fleet} --ca ca.crt --data images-0"), place)
        page.run(fetch.replace("…", "--ca ca.crt"), place)
    page.run("fedfree-client adapt --support images-0", place)
    page.run(page.block("fedfree-client export"), place)
    keep_up(tmp_path, place)
    first = next((place / "coordinator" / "store" / "accepted").iterdir()).name[:8]
    page.run(page.block("fedfree-server retrain").replace("3f9c12ab", first), place)
    assert first in page.run("fedfree-server status coordinator --contributions", place)

    place = tmp_path / "from-a-start"
    # Of people who know no coordinator at this address yet.
    page.environment["FEDFREE_HOME"] = str(place / "home")
    prepare(page, place, SMALL.model_copy(update={"preset": "start"}), preparing, joining, letting_in)
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    make, other, up = page.block("fedfree-server start make").splitlines()
    page.run(make, place)
    page.run(other.replace("--out start", "--out other"), place)
    with page.running(up, place) as waiting:
        until(waiting, "SuperLink listens")
    draw(place / "photos", classes=2, images=3)
    said = take_part(page, place, page.block("fedfree-server up coordinator --start start --public"), member)
    assert "wrote coordinator/meta_learner.safetensors" in said
    page.environment["FEDFREE_TOKEN"] = page.run(token, place).split()[0]
    with page.running(serve, place) as listening:
        until(listening, "listening on")
        shutil.rmtree(place / "start")
        assert "efficientnet" in page.run(page.block("fedfree-client start fetch"), place)
    assert page.left == []


def keep_up(home: Path, place: Path) -> None:
    """docs/operate.md, on a run that is complete."""
    (home / "elsewhere").mkdir()
    page = Page("docs/operate.md", home, {"/srv/elsewhere": str(home / "elsewhere"), "ssh -L": "ssh -G -L"})
    table, contributions, serve, *up = page.block("fedfree-server status coordinator").splitlines()
    assert re.search(r"accepted +2 ", page.run(table, place))
    assert page.run(contributions, place).count("conv4-32-batch") == len(MEMBERS)
    with page.running(serve, place) as serving:
        until(serving, "http://localhost:8765/")
    for each in up:
        page.run(each, place)
    for beginning in ("ssh", "umask 077", "tar -xpf", "sqlite3"):
        page.run(page.block(beginning), place)
    assert page.left == []
    published = "coordinator/meta_learner.safetensors"
    assert (home / "elsewhere" / published).read_bytes() == (place / published).read_bytes()


def test_the_privacy_page_ends_in_a_statement_attacks_and_a_sweep(tmp_path: Path) -> None:
    page = Page(
        "docs/privacy.md",
        tmp_path,
        SHORT_ATTACKS
        | {
            "fedfree-client pretrain": "fedfree-client pretrain --epochs 1 --threads 1",
            "--data images/": "--data images/meta_train",
            "fedfree-client rehearse": "fedfree-client rehearse --epochs 1 --threads 1",
        },
    )
    (tmp_path / "small.toml").write_text(SIMULATION)
    (tmp_path / "audit.toml").write_text(AUDIT)
    pack(tmp_path / "images.zip")
    for beginning in ("fedfree-client pretrain", "fedfree-client rehearse", "fedfree-sim privacy sweep"):
        page.run(page.block(beginning))
    assert page.left == []
    assert (tmp_path / "rehearsal" / "rehearsal.json").is_file()
    assert (tmp_path / "runs" / "audit" / "audit.json").is_file()
    assert len((tmp_path / "runs" / "sweep" / "sweep.csv").read_text().splitlines()) > 4


def test_the_page_of_simulations_runs_from_top_to_bottom(tmp_path: Path) -> None:
    small = {"fedfree-sim run": "fedfree-sim run --config small.toml"}
    shorter = SHORT_ATTACKS | {
        "--clients 24": "--clients 4",
        "--iterations 50": "--iterations 1 --set server.warmup_iterations=0",
        "fedfree-sim public-weights": "fedfree-sim public-weights --set epochs=1 --set min_steps=2",
    }
    others = {"make demo": f"make --dry-run -C {ROOT} demo"}
    if importlib.util.find_spec("tensorboard") is None:
        others["--log-to tensorboard"] = ""
    page = Page("docs/simulate.md", tmp_path, small | shorter | others)
    (tmp_path / "small.toml").write_text(SIMULATION)
    (tmp_path / "audit.toml").write_text(AUDIT)
    for archive in ("images", "a", "b"):
        pack(tmp_path / f"{archive}.zip")
    for beginning in ("fedfree-sim run", "fedfree-sim run", "fedfree-sim privacy audit"):
        page.run(page.block(beginning))
    assert page.left == []
    page = Page("docs/which.md", tmp_path, small)
    said = page.run(page.block("fedfree-sim run"))
    assert page.left == [] and "public start, frozen" in said
