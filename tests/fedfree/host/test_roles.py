"""A package that a program lacks is named with its remedy, whenever it is missed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedfree.host.roles import run_role


def start(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Run a command line that finds out in the middle of its work that a module is missing."""

    def main() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setitem(sys.modules, "some_commands", SimpleNamespace(main=main))
    run_role("fedfree-some", extra="some", commands="some_commands")


def test_a_package_missed_in_mid_command_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, "opacus.accountants")
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: fedfree-some needs fedfree[some], and its package opacus is not installed: "
        "pip install 'fedfree[some]'\n"
    )


def test_a_missing_module_of_our_own_is_a_fault_and_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        start(monkeypatch, "client.no_such_module")


def test_a_user_without_a_home_is_told_what_to_set_although_the_commands_cannot_be_put_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "homeless_commands.py").write_text(
        "from fedfree.host.places import cache_folder\nCACHE = cache_folder()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEDFREE_HOME", "here")
    with pytest.raises(SystemExit) as ended:
        run_role("fedfree-some", extra="some", commands="homeless_commands")
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "error: FEDFREE_HOME is 'here': set it to a path that begins with /\n",
    )


def test_no_garbage_is_looked_for_while_a_program_is_imported_and_again_when_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import gc\nat_import = gc.isenabled()\ndef main(): print(at_import, gc.isenabled())\n"
    (tmp_path / "a_program_for_this_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    run_role("a program", extra="x", commands="a_program_for_this_test")
    assert capsys.readouterr().out == "False True\n"
