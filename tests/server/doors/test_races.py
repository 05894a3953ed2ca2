"""Processes that change one file at once: none undoes what another did."""

import os
import subprocess
import sys
from collections.abc import Sequence
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

HOUSE = f"import sys; sys.path[:0] = {sys.path!r}\n"
READY = "print('ready', flush=True); sys.stdin.readline()\n"
"""Imports are done: everyone begins in the same moment, when told to."""


def race(scripts: Sequence[str]) -> list[str]:
    """Run scripts in processes of their own, all begun at once; what each printed from then on."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", HOUSE + script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for script in scripts
    ]
    for each in running:
        assert each.stdout and each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()
    printed = [each.communicate(timeout=60)[0] for each in running]
    assert [each.returncode for each in running] == [0] * len(running)
    return printed


TOKENS = "from pathlib import Path; from server.doors.tokens import Tokens\n" + READY
REPEATS = 10
TURNS = [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 10))]
"""Each in three processes that load the whole server: seconds."""


@pytest.mark.parametrize("turn", TURNS)
def test_of_tokens_added_and_revoked_at_once_none_is_lost_and_none_comes_back(
    tmp_path: Path, turn: int
) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    at = f"t = Tokens(Path({str(tokens.path)!r}))\n"
    leaving = [f"old-{turn}" for turn in range(REPEATS)]
    for name in leaving:
        tokens.add(name)
    adding = [
        TOKENS + at + f"for turn in range({REPEATS}): print(t.add(f'new-{{turn}}-{who}'))" for who in (1, 2)
    ]
    revoking = TOKENS + at + f"for name in {leaving!r}: t.revoke(name)"
    printed = race([*adding, revoking])
    assert tokens.organisations() == sorted(f"new-{turn}-{who}" for turn in range(REPEATS) for who in (1, 2))
    for who, text in enumerate(printed[:2], 1):
        owners = [tokens.organisation_of(token) for token in text.split()]
        assert owners == [f"new-{turn}-{who}" for turn in range(REPEATS)]


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_who_enrol_one_key_one_is_refused(tmp_path: Path, turn: int) -> None:
    deployment = init(tmp_path / "c", ["localhost"], DeploymentConfig(), CollectConfig())
    (tmp_path / "key.pub").write_bytes(make_key()[1])
    script = (
        "from pathlib import Path; from server.doors.deployment import Deployment\n"
        f"from fedfree.errors import ConfigError\nd = Deployment(Path({str(deployment.path)!r}))\n{READY}"
        f"try: d.enroll('NAME', Path({str(tmp_path / 'key.pub')!r})); print('enrolled')\n"
        "except ConfigError: print('refused')"
    )
    printed = race([script.replace("NAME", name) for name in ("org-1", "org-2", "org-3")])
    assert sorted(printed) == ["enrolled\n", "refused\n", "refused\n"]
    assert len(Deployment(deployment.path).enrolled()) == 1


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_who_prepare_one_folder_both_learn_what_one_of_them_wrote(tmp_path: Path, turn: int) -> None:
    script = (
        "import server.commands.main as m; from server.config import ServerConfig\n"
        "from fedfree.host.options import Chosen\nfrom pathlib import Path\n"
        f"chosen = Chosen(ServerConfig(seed=SEED), {{}}, frozenset())\n{READY}"
        f"print(m._prepared(Path({str(tmp_path / 'run')!r}), chosen).config().seed)"
    )
    printed = race([script.replace("SEED", str(seed)) for seed in (1, 2, 3)])
    assert len(set(printed)) == 1


@pytest.mark.parametrize("turn", TURNS)
def test_of_two_coordinators_made_in_one_folder_one_is_refused_and_the_other_is_whole(
    tmp_path: Path, turn: int
) -> None:
    script = (
        "from pathlib import Path; from server.doors.deployment import DeploymentConfig, init\n"
        "from server.config import CollectConfig; from fedfree.errors import ConfigError\n" + READY + "try:\n"
        f"    init(Path({str(tmp_path / 'c')!r}), ['localhost'], DeploymentConfig(), CollectConfig())\n"
        "except ConfigError: print('refused')\nelse: print('made')"
    )
    assert sorted(race([script] * 3)) == ["made\n", "refused\n", "refused\n"]
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
