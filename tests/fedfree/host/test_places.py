"""A person's own folders: the same wherever a command is started."""

from pathlib import Path

import pytest

from fedfree.errors import ConfigError
from fedfree.host.places import cache_folder, state_folder


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FEDFREE_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_a_word_they_are_where_the_xdg_specification_says(tmp_path: Path) -> None:
    assert state_folder() == tmp_path / ".local" / "state" / "fedfree"
    assert cache_folder() == tmp_path / ".cache" / "fedfree"


def test_xdg_variables_move_them_unless_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert state_folder() == Path("/var/state/fedfree")
    assert cache_folder() == tmp_path / ".cache" / "fedfree"


def test_a_home_of_our_own_comes_first_and_must_be_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    monkeypatch.setenv("FEDFREE_HOME", "/srv/fedfree")
    assert (state_folder(), cache_folder()) == (Path("/srv/fedfree/state"), Path("/srv/fedfree/cache"))
    monkeypatch.setenv("FEDFREE_HOME", "here")
    with pytest.raises(ConfigError, match="FEDFREE_HOME is 'here'"):
        state_folder()


@pytest.mark.parametrize("home", ["", "here"])
def test_a_home_that_would_be_another_in_every_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    with pytest.raises(ConfigError, match=f"HOME is '{home}': set it to a path that begins with /"):
        state_folder()
