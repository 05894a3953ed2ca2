"""A federation of real processes: a SuperLink with TLS and known keys, SuperNodes, a gRPC door.

Those it must not let in are refused, and whatever is killed, it ends as if nothing had been.
"""

import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.adapting.adapt import make_classifier
from client.config import ClientConfig, DataConfig, TrainingConfig
from client.data.loading import load_images
from client.doors import flower_node as node
from client.doors.grpc_remote import connect, credentials
from client.training.pretrain import pretrain
from fedfree.architectures import Architecture
from fedfree.codec import contribution_id, decode_meta_learner
from fedfree.host.channel import Address
from fedfree.host.files import write_file
from fedfree.host.flower_process import free_port, processes
from server.config import CollectConfig, InvertConfig, MetaLearnConfig, ServerConfig
from server.doors import deployment
from server.doors.tokens import Tokens

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
ORGANISATIONS = ("org-0", "org-1")
ARCHITECTURES = ("conv4", "conv4-32-group", "resnet10")
"""Of the organisations that come through Flower; one more comes through gRPC."""
FAULT_MOMENTS = 10
DEADLINE_SECONDS = 600.0


def write_images(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(80 * label, 80 * label + 60, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


def coordinator(path: Path, listen: Address, *, organisations: int, iterations: int) -> deployment.Deployment:
    collect = CollectConfig(organisations=organisations, deadline_hours=DEADLINE_SECONDS / 3600)
    settings = deployment.DeploymentConfig(listen=str(listen))
    made = deployment.init(path, [listen.host], settings, collect)
    tiny = ServerConfig(
        device="cpu",
        threads=1,
        collect=collect,
        iterations=iterations,
        checkpoint_iterations=5,
        invert=InvertConfig(
            models_per_iteration=2, images_per_model=12, steps=2, latent_size=16, generator_width=8
        ),
        learn=MetaLearnConfig(compositions=8, relational_tasks=2, batch_size=8),
    )
    made.run.server_toml.write_text(tiny.to_toml())
    return made


def organisation(
    path: Path, server: Address, authority: Path, seed: int, *, retries: int = 2, **pretrain: object
) -> node.Node:
    config = node.NodeConfig(server=str(server), retries=retries)
    data = write_images(path.with_name(f"{path.name}-images"), seed)
    made = node.init(path, config, authority, data)
    made.client_toml.write_text(training(data, path / "cache", seed, **pretrain).to_toml())
    return made


def training(data: Path, cache: Path, seed: int, **pretrain: object) -> ClientConfig:
    tiny = {"image_size": 16, "epochs": 1, "min_steps": 2, "batch_size": 16, "threads": 1}
    return ClientConfig(
        data=DataConfig(source=data),
        training=TrainingConfig.parse(tiny | pretrain, origin="the test"),
        cache=cache,
        seed=seed,
    )


@contextmanager
def up(
    side: str, directory: Path, *where: str, programs: Path | None = None, sources: Path = ROOT
) -> Iterator["subprocess.Popen[str]"]:
    """``fedfree-server up`` or ``fedfree-client up``, told to end with its block.

    Args:
        where: what the command is given to, to be run in another place.
        programs: where the installed commands are; the checkout's by default.
        sources: the checkout.
    """
    environment = ENVIRONMENT | {"PYTHONPATH": f"{sources}:{sources / 'proto'}"}
    if programs:
        del environment["PYTHONPATH"]
    code = f"import sys; from {side}.commands.main import main; sys.argv[1:] = sys.argv[2:]; main()"
    process = subprocess.Popen(
        [
            *where,
            *([str(programs / f"fedfree-{side}")] if programs else [sys.executable, "-c", code, side]),
            *("up", str(directory)),
        ],
        env=environment,
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=90)


def contributors(server: deployment.Deployment) -> int:
    """How many contributions are in what was published."""
    learned = decode_meta_learner(server.run.manifest.read_bytes(), server.run.weights.read_bytes())
    return len(learned.provenance.contributions)


@pytest.mark.slow
def test_enrolled_organisations_finish_a_run_and_others_are_refused_with_a_clear_word(tmp_path: Path) -> None:
    port = Address("127.0.0.1", free_port())
    server = coordinator(tmp_path / "coordinator", port, organisations=len(ORGANISATIONS), iterations=2)
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
    assert contributors(server) == len(ORGANISATIONS)
    for directory in (server.path, *(member.path for member in members)):
        assert processes(directory / ".flwr") == []
    assert "org-0-images" not in server.run.events.read_text()


@pytest.mark.slow
def test_no_code_of_a_coordinator_runs_at_an_organisation(tmp_path: Path) -> None:
    marker, theirs = tmp_path / "marker", tmp_path / "theirs"
    for package in ("client", "server", "proto"):
        shutil.copytree(ROOT / package, theirs / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (theirs / "client" / "doors" / "flower_app.py").open("a") as app:
        app.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    listen = Address("127.0.0.1", free_port())
    server, members = enrolled_pair(tmp_path, listen, listen)
    with ExitStack() as stack:
        running = stack.enter_context(up("server", server.path, sources=theirs))
        for member in members:
            stack.enter_context(up("client", member.path))
        assert running.wait(DEADLINE_SECONDS) != 0
    assert "the coordinator's app bundle is" in server.run.events.read_text()
    assert not marker.exists()
    for member in members:
        assert not list((member.path / ".flwr").glob("apps/*"))
        assert not (member.path / "ledger.sqlite").exists()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Where the programs of an installed wheel are: outside the checkout, which is not on its path.

    What it needs of others is taken from where this interpreter has it.
    """
    source, environment = tmp_path / "source", tmp_path / "environment"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split("\0")):
        write_file(source / name, (ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path / "wheel"),
        str(source),
    ]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(source)
    venv.create(environment, symlinks=True)
    programs = environment / "bin"
    (wheel,) = (tmp_path / "wheel").iterdir()
    into = [*pip, "--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(into, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for program in Path(sys.executable).parent.glob("fl*"):
        _, _, rest = program.read_text().partition("\n")
        write_file(programs / program.name, f"#!{programs / 'python'}\n{rest}".encode(), mode=0o755)
    return programs


@pytest.mark.slow
def test_an_installed_wheel_finishes_a_run_outside_the_checkout_whatever_proxy_is_named(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setitem(ENVIRONMENT, variable, f"http://127.0.0.1:{free_port()}")
    listen = Address("127.0.0.1", free_port())
    server, members = enrolled_pair(tmp_path, listen, listen)
    with ExitStack() as stack:
        running = stack.enter_context(up("server", server.path, programs=installed))
        for member in members:
            stack.enter_context(up("client", member.path, programs=installed))
        _, said = running.communicate(timeout=DEADLINE_SECONDS)
        assert running.returncode == 0, said
    assert contributors(server) == len(ORGANISATIONS)
    bundled = server.path / ".flwr" / "bundle"
    assert (bundled / "server" / "pipeline.py").is_file()
    assert not (bundled / "proto").exists()


@dataclass(frozen=True)
class Federation:
    """A coordinator with both doors, three organisations with nodes, and one with a model alone."""

    server: deployment.Deployment
    members: tuple[node.Node, ...]
    door: Address
    token: str
    contribution: tuple[bytes, bytes]
    """Of the organisation without a node."""

    def moment(self, stage: str, kind: str) -> float | None:
        """When it first reported an event, in seconds since 1970."""
        events = self.server.run.read_events()
        return next((each.time for each in events if (each.stage, each.kind) == (stage, kind)), None)

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        """The coordinator's `up`, with every member's beside it."""
        with ExitStack() as stack:
            running = stack.enter_context(up("server", self.server.path))
            for member in self.members:
                stack.enter_context(up("client", member.path))
            yield running

    @contextmanager
    def open_door(self) -> Iterator["subprocess.Popen[bytes]"]:
        """``fedfree-server serve``, listening."""
        where = ("--store", self.server.path, "--listen", self.door)
        tls = ("--certificate", self.server.certificate, "--key", self.server.key)
        code = "import sys; from server.commands.main import main; sys.argv[0] = 'fedfree-server'; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *map(str, (*where, *tls))],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening on ")
            yield process
        finally:
            process.kill()
            process.communicate()

    def contribute(self) -> float:
        """Hand over the model that needs no node; returns the seconds it took."""
        started = time.monotonic()
        with connect(self.door, credentials(self.server.authority), self.token) as remote:
            state = remote.contribute(*self.contribution)
        assert state.identity == contribution_id(self.contribution[0])
        return time.monotonic() - started


def federation(path: Path) -> Federation:
    """The same one in every folder, but for keys and ports."""
    port, door = (Address("127.0.0.1", free_port()) for _ in range(2))
    members = len(ARCHITECTURES)
    server = coordinator(path / "coordinator", port, organisations=members + 1, iterations=60)
    nodes = []
    for seed, name in enumerate(ARCHITECTURES):
        architecture = Architecture.parse(name)
        home = path / f"org-{seed}"
        steps = 60 if name.startswith("resnet") else 400
        nodes.append(
            organisation(
                home, port, server.authority, seed, retries=10, architecture=architecture, min_steps=steps
            )
        )
        server.enroll(home.name, nodes[-1].path / "node.key.pub")
    data = write_images(path / "images", members)
    config = training(data, path / "cache", members, architecture=Architecture.parse("resnet10"))
    token = Tokens(server.run.tokens).add("clinic")
    return Federation(server, tuple(nodes), door, token, pretrain(config))


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Undisturbed:
    """What the federation leads to when nothing is killed, and how long its parts take."""

    server: deployment.Deployment
    weights: bytes
    upload_seconds: float
    collect_seconds: float
    learn_seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Each member's answer comes within ``collect_seconds`` of its being asked."""
    whole = federation(tmp_path_factory.mktemp("undisturbed"))
    with whole.open_door(), whole.running() as running:
        upload = whole.contribute()
        _, said = running.communicate(timeout=DEADLINE_SECONDS)
        assert running.returncode == 0, said
    times = [whole.moment(stage, kind) for stage in ("collect", "learn") for kind in ("started", "finished")]
    began, collected, learning, learned = (moment for moment in times if moment is not None)
    published = whole.server.run.weights.read_bytes()
    return Undisturbed(whole.server, published, upload, collected - began, learned - learning)


@pytest.mark.slow
def test_three_architectures_through_flower_and_one_through_grpc_make_a_classifier(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    directory = undisturbed.server.run
    learned = decode_meta_learner(directory.manifest.read_bytes(), undisturbed.weights)
    assert len(learned.provenance.contributions) == len(ARCHITECTURES) + 1
    store = directory.store()
    contributed = {str(store.contribution(each).architecture) for each in learned.provenance.contributions}
    assert contributed == {str(Architecture.parse(name)) for name in ARCHITECTURES}
    answers = json.loads(directory.adaptation.read_text())
    assert len(answers) == len(ARCHITECTURES) and not any("error" in each for each in answers)
    support = load_images(write_images(tmp_path / "support", 20), size=learned.input.height)
    assert make_classifier(learned, support).class_names == ("class0", "class1", "class2")


def processes_called(directory: Path, name: str) -> list[int]:
    """The Flower processes of a directory whose program has this name."""
    found = []
    for process in processes(directory / ".flwr"):
        with suppress(OSError):
            if name.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def kill(directory: Path, name: str) -> None:
    """SIGKILL a Flower program, once it is there."""
    wait_for(lambda: processes_called(directory, name), name)
    for process in processes_called(directory, name):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def kill_node(whole: Federation, which: int, seconds: float) -> None:
    """While it trains: so long after its app started."""
    home = whole.members[which].path
    wait_for(lambda: processes_called(home, "flwr-clientapp"), "a ClientApp")
    time.sleep(seconds)
    kill(home, "flower-supernode")


def kill_server_app(whole: Federation, seconds: float) -> None:
    """While it inverts models: so long after learning started."""
    wait_for(lambda: whole.moment("learn", "started"), "learning")
    time.sleep(seconds)
    kill(whole.server.path, "flwr-serverapp")


def kill_superlink(whole: Federation, seconds: float) -> None:
    """So long after the run started."""
    wait_for(lambda: whole.moment("collect", "started"), "the run")
    time.sleep(seconds)
    kill(whole.server.path, "flower-superlink")


def upload_and_kill_door(whole: Federation, seconds: float) -> None:
    """Contribute through a door that is killed in mid-upload, and opened again."""
    with ThreadPoolExecutor() as pool:
        with whole.open_door() as door:
            uploading = pool.submit(whole.contribute)
            time.sleep(seconds)
            door.kill()
        with whole.open_door():
            uploading.result(timeout=DEADLINE_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(FAULT_MOMENTS))
def test_whatever_is_killed_nothing_is_lost_and_the_result_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path, moment: int
) -> None:
    rng, whole = random.Random(moment), federation(tmp_path)
    store = whole.server.run.store()
    seen = set[str]()
    with whole.running() as running, ThreadPoolExecutor() as saboteurs:
        sabotage = [
            saboteurs.submit(upload_and_kill_door, whole, rng.uniform(0, undisturbed.upload_seconds)),
            saboteurs.submit(
                kill_node,
                whole,
                rng.randrange(len(whole.members)),
                rng.uniform(0, undisturbed.collect_seconds),
            ),
            saboteurs.submit(
                kill_superlink,
                whole,
                rng.uniform(0, undisturbed.collect_seconds + undisturbed.learn_seconds),
            ),
            saboteurs.submit(kill_server_app, whole, rng.uniform(0, 0.8 * undisturbed.learn_seconds)),
        ]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while running.poll() is None and time.monotonic() < deadline:
            now = set(store.all_ids())
            assert seen <= now, "a contribution that had arrived is gone"
            seen |= now
            time.sleep(0.2)
        _, said = running.communicate(timeout=1)
        assert running.returncode == 0, said
        for each in sabotage:
            each.result(timeout=DEADLINE_SECONDS)
    assert len(seen) == len(whole.members) + 1
    assert whole.server.run.weights.read_bytes() == undisturbed.weights


def enrolled_pair(
    path: Path, listen: Address, reached_at: Address
) -> tuple[deployment.Deployment, list[node.Node]]:
    """A coordinator and two organisations that it lets in."""
    server = coordinator(path / "coordinator", listen, organisations=len(ORGANISATIONS), iterations=2)
    members = []
    for seed, name in enumerate(ORGANISATIONS):
        members.append(organisation(path / name, reached_at, server.authority, seed, retries=10))
        server.enroll(name, members[-1].path / "node.key.pub")
    return server, members


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_organisations_come_through_nginx_which_publishes_nothing_but_their_path(tmp_path: Path) -> None:
    listen, published = (Address("127.0.0.1", free_port()) for _ in range(2))
    server, members = enrolled_pair(tmp_path, listen, published)
    with ExitStack() as stack:
        stack.enter_context(nginx(tmp_path, server, listen, published))
        running = stack.enter_context(up("server", server.path))
        for member in members:
            stack.enter_context(up("client", member.path))
        trusted = ssl.create_default_context(cafile=str(server.authority))
        wait_for(lambda: server.run.read_events(), "the run")
        for path in ("/", "/v1/control/list-runs", "/flwr.proto.Control/ListRuns"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"https://{published}{path}", data=b"", context=trusted)
        _, said = running.communicate(timeout=DEADLINE_SECONDS)
        assert running.returncode == 0, said
    assert contributors(server) == len(ORGANISATIONS)


@contextmanager
def nginx(path: Path, server: deployment.Deployment, listen: Address, published: Address) -> Iterator[None]:
    """nginx with the snippet of deploy/, its paths and ports replaced."""
    snippet = (ROOT / "deploy" / "nginx.conf").read_text()
    replaced = {
        "listen 8443": f"listen {published.port}",
        "fed.example.org": published.host,
        "/srv/fedfree/coordinator": str(server.path),
        "127.0.0.1:8000": str(listen),
    }
    for old, new in replaced.items():
        assert old in snippet
        snippet = snippet.replace(old, new)
    temporary = " ".join(
        f"{kind}_temp_path {path / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = path / "nginx.conf"
    whole.write_text(
        f"daemon off; pid {path / 'nginx.pid'}; error_log {path / 'nginx.log'}; events {{ }}\n"
        f"http {{ access_log off; {temporary}\n{snippet} }}\n"
    )
    process = subprocess.Popen(["nginx", "-e", str(path / "nginx.log"), "-c", str(whole)])
    try:
        yield
        assert process.poll() is None, (path / "nginx.log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def namespaces_work() -> bool:
    """Whether this kernel and user may make network namespaces."""
    command = shutil.which("ip")
    if command is None or subprocess.run([command, "netns", "add", "fedfree-probe"], check=False).returncode:
        return False
    subprocess.run([command, "netns", "delete", "fedfree-probe"], check=True)
    return True


@contextmanager
def hosts(count: int) -> Iterator[list[str]]:
    """Network namespaces on one bridge, 10.99.7.1 and on; each sees the others and no other network."""
    names = [f"fedfree-{os.getpid()}-{index}" for index in range(count)]
    bridge = f"ff{os.getpid() % 100_000}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("link", "set", bridge, "up")
        for number, name in enumerate(names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"{bridge}-{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{bridge}-{number}", "master", bridge, "up")
            ip("-n", name, "address", "add", f"10.99.7.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        ip("link", "delete", bridge)


@pytest.mark.slow
def test_three_hosts_that_share_a_network_and_nothing_else_finish_a_run(tmp_path: Path) -> None:
    if not namespaces_work():
        pytest.skip("needs `ip netns`, and the right to use it")
    listen = Address("10.99.7.1", 8000)
    server, members = enrolled_pair(tmp_path, listen, listen)
    with hosts(1 + len(members)) as (first, *others), ExitStack() as stack:
        running = stack.enter_context(up("server", server.path, "ip", "netns", "exec", first))
        for name, member in zip(others, members, strict=True):
            stack.enter_context(up("client", member.path, "ip", "netns", "exec", name))
        _, said = running.communicate(timeout=DEADLINE_SECONDS)
        assert running.returncode == 0, said
    assert contributors(server) == len(ORGANISATIONS)
