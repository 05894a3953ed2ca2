"""The walls of the house, read off the import graph, and the generated code held against its source."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import fedfree
from fedfree.host.flower_bundle import app_toml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {
    "fedfree": ROOT / "proto" / "fedfree",
    "server": ROOT / "server",
    "client": ROOT / "client",
    "simulations": ROOT / "simulations",
}


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Everything that a file says."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def modules(room: str) -> dict[str, Path]:
    """Module name to file."""
    files = {}
    for path in ROOMS[room].rglob("*.py"):
        parts = (room, *path.relative_to(ROOMS[room]).with_suffix("").parts)
        files[".".join(part for part in parts if part != "__init__")] = path
    return files


ALL = {name: path for room in ROOMS for name, path in modules(room).items()}


def reachable(start: str) -> dict[str, frozenset[str]]:
    """Everything that importing ``start`` imports, within the project, with each module's imports."""
    seen: dict[str, frozenset[str]] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in ALL and name not in seen:
            seen[name] = imports_of(ALL[name])
            parents = {name.rpartition(".")[0]}
            waiting += [each for each in seen[name] | parents if each in ALL]
    return seen


def begins_with(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("fedfree", ("server", "client", "simulations")),
        ("server", ("client", "simulations")),
        ("client", ("server", "simulations")),
    ],
)
def test_only_simulations_reaches_into_other_rooms(room: str, forbidden: tuple[str, ...]) -> None:
    for name, path in modules(room).items():
        crossing = {each for each in imports_of(path) if begins_with(each, *forbidden)}
        assert not crossing, f"{name} imports {crossing}"


def test_the_server_reaches_no_image_data_and_no_opacus() -> None:
    for start in modules("server"):
        for name, imported in reachable(start).items():
            assert not begins_with(name, "client", "simulations"), f"{start} reaches {name}"
            forbidden = ("torchvision.datasets", "opacus", *(() if name == DECODER else ("PIL",)))
            data = {each for each in imported if begins_with(each, *forbidden)}
            assert not data, f"{start} reaches {data} through {name}"


DECODER = "fedfree.host.images.decoding"


def test_the_server_reads_images_at_one_place_and_only_where_a_coordinator_names_public_ones() -> None:
    reader = "server.storage.public_images"
    importing = {
        name: imported for name, path in modules("server").items() for imported in [imports_of(path)]
    }
    reading = [
        name for name, those in importing.items() if any(begins_with(i, "fedfree.host.images") for i in those)
    ]
    assert reading == [reader]
    assert {name for name, those in importing.items() if reader in those} == {"server.storage.run_directory"}
    asking = {name for name, path in modules("server").items() if ".adopt_public_images(" in path.read_text()}
    assert asking == {"server.commands.main", "server.commands.deploying"}


def test_learning_reaches_no_image_reader() -> None:
    for start in (name for name in modules("server") if begins_with(name, "server.learning")):
        assert DECODER not in reachable(start), start


def test_the_pipeline_knows_neither_flower_nor_grpc() -> None:
    for name, imported in reachable("server.pipeline").items():
        crossing = {each for each in imported if begins_with(each, "flwr", "grpc")}
        assert not crossing, f"{name} imports {crossing}"


def test_the_contract_needs_nothing_of_its_host() -> None:
    for name, path in modules("fedfree").items():
        if not begins_with(name, "fedfree.host"):
            crossing = {each for each in imports_of(path) if begins_with(each, "fedfree.host")}
            assert not crossing, f"{name} imports {crossing}"


STOREYS = (
    ("federation", "command_line"),
    ("baselines",),
    ("reporting",),
    ("planning", "simulate"),
    ("series",),
    ("attacks",),
    ("benchmarks",),
    ("commands", "__main__"),
)
"""Of simulations, from the ground up: each imports what is beneath it, none what is beside or above it."""


@pytest.mark.parametrize("storey", range(len(STOREYS) - 1))
def test_rooms_of_simulations_import_none_beside_or_above_them(storey: int) -> None:
    for room in STOREYS[storey]:
        others = [each for rooms in STOREYS[storey:] for each in rooms if each != room]
        forbidden = [f"simulations.{each}" for each in others]
        for name, path in modules("simulations").items():
            if begins_with(name, f"simulations.{room}"):
                crossing = {each for each in imports_of(path) if begins_with(each, *forbidden)}
                assert not crossing, f"{name} imports {crossing}"


def test_every_room_of_simulations_is_on_a_storey() -> None:
    found = {name.split(".")[1] for name in modules("simulations") if "." in name}
    assert found - {"config"} <= {room for rooms in STOREYS for room in rooms}


def calls_of(path: Path, *functions: str) -> list[ast.Call]:
    """Where a file calls one of these functions, by the name written there."""
    calls = [node for node in nodes_of(path) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in functions]


DISK = ("os", "pathlib", "io", "shutil", "tempfile", "fcntl", "mmap", "sqlite3", "fedfree.host.files")
TRANSPORT = ("flwr", "grpc", "socket", "ssl", "http", "urllib")
ROOMS_AROUND = ("server.storage", "server.doors", "server.commands", "server.pipeline", "server.run")
OPENING = ("open", "torch.load", "torch.save", "safetensors.safe_open")
OPENING += ("safetensors.torch.load_file", "safetensors.torch.save_file")


def test_learning_reaches_no_disk_and_no_transport() -> None:
    rooms = [name for name in modules("server") if begins_with(name, "server.learning")]
    reached = {name: imported for start in rooms for name, imported in reachable(start).items()}
    for name, imported in reached.items():
        crossing = {each for each in imported if begins_with(each, *TRANSPORT, *ROOMS_AROUND)}
        assert not crossing, f"{name} imports {crossing}"
    # A configuration knows how to be read from a file; what learning is given has been read.
    for name in rooms:
        crossing = {each for each in reached[name] if begins_with(each, *DISK)}
        assert not crossing, f"{name} imports {crossing}"
        files = calls_of(ALL[name], *OPENING)
        assert not files, f"{name}:{files[0].lineno} calls {ast.unparse(files[0])}"


UNPICKLING = {
    "client.training.pack": "an owner's own checkpoint, on the owner's machine",
    "fedfree.host.public_weights": "one file of an installed package, only if its hash is the known one",
}
"""Modules that open a pickle, as plain tensors, and why they may: no other party can hand them one."""


def test_nothing_is_unpickled() -> None:
    for name, path in ALL.items():
        imported = {each for each in imports_of(path) if begins_with(each, "pickle", "dill", "joblib")}
        assert not imported, f"{name} imports {imported}"
        loads = calls_of(path, "torch.load", "np.load")
        assert not loads or name in UNPICKLING, f"{name}:{loads[0].lineno} calls {ast.unparse(loads[0])}"


@pytest.mark.parametrize(
    ("module", "importing"),
    [
        ("client.training.pack", {"client.commands.contributing"}),
        (
            "fedfree.host.public_weights",
            {
                "server.commands.starting",
                "simulations.benchmarks.quality",
                "simulations.config",
                "simulations.federation.starts",
            },
        ),
    ],
)
def test_a_pickle_is_opened_as_plain_tensors_and_at_one_place(module: str, importing: set[str]) -> None:
    (load,) = calls_of(ALL[module], "torch.load", "np.load")
    options = {option.arg: ast.unparse(option.value) for option in load.keywords}
    assert options["weights_only"] == "True"
    assert {name for name, path in ALL.items() if module in imports_of(path)} == importing


WRITES = {
    "fedfree.host.files": "the one place where files are written",
    "fedfree.host.lock": "a lock must stay the same file, so it is written in place",
    "fedfree.host.flower_bundle": "copies of sources, made anew at every start",
    "server.storage.checkpoint": "tensors go to a file beside, which is synced and renamed",
    "client.training.pretrain": "files go into a folder beside, which is renamed",
}
"""Modules that write files by themselves, and why they may."""
_WRITING = ("write_text", "write_bytes", "touch", "savefig", "save", "save_file")
_COPYING = (
    "shutil.copy",
    "shutil.copy2",
    "shutil.copyfile",
    "shutil.copytree",
    "shutil.move",
    "os.fdopen",
)
_NOWHERE = ("buffer",)
_NO_FILES = ("safetensors.torch.save", "saved.save")
"""Calls of such a name that return bytes, or go through a function of ours."""


def writes_a_file(call: ast.Call) -> bool:
    """Whether a call writes a file, as far as its words tell."""
    name, words = ast.unparse(call.func), [ast.unparse(each) for each in call.args]
    last = name.rpartition(".")[2]
    if last == "open" and name != "os.open":
        modes = words[:1] if "." in name else words[1:2]
        modes += [ast.unparse(each.value) for each in call.keywords if each.arg == "mode"]
        return any(set("wax+") & set(mode) for mode in modes if mode.startswith(("'", '"')))
    if name == "os.open":
        return (
            any(flag in words[1] for flag in ("O_WRONLY", "O_RDWR", "O_CREAT")) and words[0] != "os.devnull"
        )
    if last == "ZipFile":
        return len(words) > 1 and words[0] != "partial" and "r" not in words[1]
    is_writing = name in _COPYING or (last in _WRITING and name not in _NO_FILES)
    return is_writing and not (words and words[0] in _NOWHERE)


@pytest.mark.parametrize(
    ("code", "writes"),
    [
        ("path.open('wb')", True),
        ("path.open(mode='a')", True),
        ("open(path, 'w')", True),
        ("path.write_text('x')", True),
        ("figure.savefig(path)", True),
        ("safetensors.torch.save_file(tensors, path)", True),
        ("path.open('rb')", False),
        ("open(path)", False),
        ("image.save(buffer, 'png')", False),
        ("safetensors.torch.save(tensors)", False),
    ],
)
def test_writing_is_known_by_its_words(code: str, writes: bool) -> None:
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert writes_a_file(call) == writes


def test_files_are_written_in_one_way() -> None:
    """Beside their place, synced and renamed: by ``fedfree.host.files``."""
    found = []
    for name, path in ALL.items():
        calls = [node for node in nodes_of(path) if isinstance(node, ast.Call)]
        writing = [call for call in calls if writes_a_file(call)]
        found += [f"{name}:{call.lineno} {ast.unparse(call)}" for call in writing if name not in WRITES]
    assert found == []


def test_generated_code_is_what_the_proto_files_generate(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("needs grpcio-tools, part of the dev extra")
    schema = ROOMS["fedfree"] / "v1"
    sources = sorted(str(path) for path in schema.glob("*.proto"))
    options = [f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *sources], check=True)
    service = [options[0], f"--grpc_python_out={tmp_path}", str(schema / "service.proto")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *service], check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "fedfree" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in schema.glob("*_pb2*.py*")}
    assert generated.keys() == committed.keys()
    for name, text in generated.items():
        assert committed[name] == text, f"{name} is stale: run `make proto`"


def test_every_tracked_package_is_installed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    packages = {name for name, path in ALL.items() if path.name == "__init__.py"}
    assert packages == listed


def test_the_flower_app_is_told_alike_twice() -> None:
    told = tomllib.loads(app_toml())
    assert told["tool"]["flwr"] == PROJECT["tool"]["flwr"]
    assert told["project"]["version"] == fedfree.__version__


def test_the_version_is_said_alike_twice() -> None:
    assert fedfree.__version__ == PROJECT["project"]["version"]
