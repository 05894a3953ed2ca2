"""The walls of the house, read off the import graph, and the generated code held against its source."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedfree

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {
    "fedfree": ROOT / "proto" / "fedfree",
    "server": ROOT / "server",
    "client": ROOT / "client",
    "simulations": ROOT / "simulations",
}


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(room: str) -> dict[str, Path]:
    """Module name to file."""
    files = {}
    for path in ROOMS[room].rglob("*.py"):
        parts = (room, *path.relative_to(ROOMS[room]).with_suffix("").parts)
        files[".".join(part for part in parts if part != "__init__")] = path
    return files


ALL = {name: path for room in ROOMS for name, path in modules(room).items()}


def reachable(start: str) -> dict[str, set[str]]:
    """Everything that importing ``start`` imports, within the project, with each module's imports."""
    seen: dict[str, set[str]] = {}
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
            data = {each for each in imported if begins_with(each, "torchvision.datasets", "PIL", "opacus")}
            assert not data, f"{start} reaches {data} through {name}"


def test_importing_the_whole_server_loads_no_client_code() -> None:
    names = ", ".join(sorted(modules("server")))
    code = (
        f"import sys, {names}; "
        "loaded = {m.split('.')[0] for m in sys.modules} & {'client', 'simulations', 'opacus'}; "
        "sys.exit(', '.join(loaded) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr


def test_the_pipeline_knows_neither_flower_nor_grpc() -> None:
    for name, imported in reachable("server.pipeline").items():
        crossing = {each for each in imported if begins_with(each, "flwr", "grpc")}
        assert not crossing, f"{name} imports {crossing}"


def calls_of(path: Path, *functions: str) -> list[ast.Call]:
    """Where a file calls one of these functions, by the name written there."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in functions]


DISK = ("os", "pathlib", "io", "shutil", "tempfile", "fcntl", "mmap", "sqlite3", "fedfree.host.files")
TRANSPORT = ("flwr", "grpc", "socket", "ssl", "http", "urllib")
ROOMS_AROUND = ("server.storage", "server.doors", "server.commands", "server.pipeline", "server.run")
OPENING = ("open", "torch.load", "torch.save", "safetensors.safe_open")
OPENING += ("safetensors.torch.load_file", "safetensors.torch.save_file")


def test_learning_reaches_no_disk_and_no_transport() -> None:
    rooms = [name for name in modules("server") if begins_with(name, "server.learning")]
    reached = {name: imported for start in rooms for name, imported in reachable(start).items()}
    # A configuration knows how to be read from a file; what learning is given has been read.
    reached["fedfree.settings"].difference_update({"pathlib", "pathlib.Path"})
    for name, imported in reached.items():
        crossing = {each for each in imported if begins_with(each, *DISK, *TRANSPORT, *ROOMS_AROUND)}
        assert not crossing, f"{name} imports {crossing}"
        files = calls_of(ALL[name], *OPENING)
        assert not files, f"{name}:{files[0].lineno} calls {ast.unparse(files[0])}"


def test_nothing_is_unpickled() -> None:
    for name, path in ALL.items():
        imported = {each for each in imports_of(path) if begins_with(each, "pickle", "dill", "joblib")}
        assert not imported, f"{name} imports {imported}"
        loads = calls_of(path, "torch.load", "np.load")
        assert not loads or name == "client.training.pack", (
            f"{name}:{loads[0].lineno} calls {ast.unparse(loads[0])}"
        )


def test_an_owner_packs_a_checkpoint_as_plain_tensors_and_at_one_place() -> None:
    (load,) = calls_of(ALL["client.training.pack"], "torch.load", "np.load")
    options = {option.arg: ast.unparse(option.value) for option in load.keywords}
    assert options["weights_only"] == "True"
    importing = {name for name, path in ALL.items() if "client.training.pack" in imports_of(path)}
    assert importing == {"client.commands.contributing"}


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


def test_the_version_is_said_alike_twice() -> None:
    assert fedfree.__version__ == PROJECT["project"]["version"]
