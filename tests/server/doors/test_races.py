"""Processes that change one file at once: none undoes what another did."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509

from client.doors.flower_node import make_key
from fedfree.host.files import write_file
from fedfree.host.tls import read_certificate
from server.config import CollectConfig, ServerConfig
from server.doors.deployment import Deployment, DeploymentConfig, init
from server.doors.tokens import Tokens
from server.storage.run_directory import RunDirectory
from tests.programs import RunProgram

FORKS = f"""
import io, json, os, signal, sys
sys.path[:0] = {sys.path!r}

def race(scripts):
    begun, begin = os.pipe()
    children = []
    for script in scripts:
        printed, to = os.pipe()
        if not os.fork():
            signal.alarm(60)
            os.close(begin)
            os.dup2(to, 1)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"))
            work = compile(script, "a script", "exec")
            os.read(begun, 1)
            exec(work, globals())
            sys.stdout.flush()
            os._exit(0)
        os.close(to)
        children.append(printed)
    os.close(begin)
    printed = [os.fdopen(each).read() for each in children]
    os.close(begun)
    return printed, any([os.wait()[1] for _ in children])

for line in sys.stdin:
    imports, *scripts = json.loads(line)
    exec(imports)
    print(json.dumps(race(scripts)), flush=True)
"""
"""Imports once what all scripts need, forks a process for each, and has all begin in the same moment: the end
of the pipe that they read from wakes everyone."""
Race = Callable[[str, Sequence[str]], list[str]]


@pytest.fixture(scope="module")
def race() -> Iterator[Race]:
    """Run scripts in processes of their own, all begun at once; what each printed.

    One parent forks them all, for to load the server takes seconds.
    """
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin and parent.stdout
        to, answers = parent.stdin, parent.stdout

        def run(imports: str, scripts: Sequence[str]) -> list[str]:
            print(json.dumps([imports, *scripts]), file=to, flush=True)
            printed, failed = json.loads(answers.readline())
            assert not failed, "a script failed: see what it wrote to standard error"
            return list(printed)

        yield run


TOKENS = "from pathlib import Path; from server.doors.tokens import Tokens"
REPEATS = 10
TURNS = [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 10))]
"""Each in a process that loads the whole server: seconds."""


@pytest.mark.parametrize("turn", TURNS)
def test_of_tokens_added_and_revoked_at_once_none_is_lost_and_none_comes_back(
    tmp_path: Path, race: Race, turn: int
) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    at = f"t = Tokens(Path({str(tokens.path)!r}))\n"
    leaving = [f"old-{turn}" for turn in range(REPEATS)]
    for name in leaving:
        tokens.add(name)
    adding = [at + f"for turn in range({REPEATS}): print(t.add(f'new-{{turn}}-{who}'))" for who in (1, 2)]
    revoking = at + f"for name in {leaving!r}: t.revoke(name)"
    printed = race(TOKENS, [*adding, revoking])
    assert tokens.organisations() == sorted(f"new-{turn}-{who}" for turn in range(REPEATS) for who in (1, 2))
    for who, text in enumerate(printed[:2], 1):
        owners = [tokens.organisation_of(token) for token in text.split()]
        assert owners == [f"new-{turn}-{who}" for turn in range(REPEATS)]


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_who_enrol_one_key_one_is_refused(tmp_path: Path, race: Race, turn: int) -> None:
    deployment = init(tmp_path / "c", ["localhost"], DeploymentConfig(), CollectConfig())
    (tmp_path / "key.pub").write_bytes(make_key()[1])
    imports = (
        "from pathlib import Path; from server.doors.deployment import Deployment\n"
        f"from fedfree.errors import ConfigError\nd = Deployment(Path({str(deployment.path)!r}))"
    )
    script = (
        f"try: d.enroll('NAME', Path({str(tmp_path / 'key.pub')!r})); print('enrolled')\n"
        "except ConfigError: print('refused')"
    )
    printed = race(imports, [script.replace("NAME", name) for name in ("org-1", "org-2", "org-3")])
    assert sorted(printed) == ["enrolled\n", "refused\n", "refused\n"]
    assert len(Deployment(deployment.path).enrolled()) == 1


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_who_prepare_one_folder_both_learn_what_one_of_them_wrote(
    tmp_path: Path, race: Race, turn: int
) -> None:
    imports = (
        "import server.commands.main as m; from server.config import ServerConfig\n"
        "from fedfree.host.options import Chosen\nfrom pathlib import Path"
    )
    script = (
        "chosen = Chosen(ServerConfig(seed=SEED), {}, frozenset())\n"
        f"print(m._prepared(Path({str(tmp_path / 'run')!r}), chosen).config().seed)"
    )
    printed = race(imports, [script.replace("SEED", str(seed)) for seed in (1, 2, 3)])
    assert len(set(printed)) == 1


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_coordinators_made_in_one_folder_one_is_refused_and_the_other_is_whole(
    tmp_path: Path, race: Race, turn: int
) -> None:
    imports = (
        "from pathlib import Path; from server.doors.deployment import DeploymentConfig, init\n"
        "from server.config import CollectConfig; from fedfree.errors import ConfigError"
    )
    script = (
        f"try:\n    init(Path({str(tmp_path / 'c')!r}), ['localhost'], DeploymentConfig(), CollectConfig())\n"
        "except ConfigError: print('refused')\nelse: print('made')"
    )
    assert sorted(race(imports, [script] * 3)) == ["made\n", "refused\n", "refused\n"]
    made = Deployment(tmp_path / "c")
    read_certificate(made.certificate, made.key)
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    x509.load_pem_x509_certificate(made.certificate.read_bytes()).verify_directly_issued_by(authority)


def test_a_second_door_on_one_store_is_refused_and_told_who_holds_it(
    tmp_path: Path, run_program: RunProgram
) -> None:
    write_file(tmp_path / "server.toml", ServerConfig().to_toml().encode())
    words = ("serve", "--store", tmp_path, "--insecure", "--listen", "127.0.0.1:0")
    with RunDirectory(tmp_path).door_held():
        status, _, err = run_program("server", *words)
    assert status == 2 and f"another process runs in {tmp_path}: process {os.getpid()} on " in err
