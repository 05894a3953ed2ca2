"""What a side says that it is: the same wherever the same contract lies, another for another one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedfree
from fedfree.errors import VersionError
from fedfree.release import require_same_release, this_release


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the contract, from which the release is read."""
    root = tmp_path / "fedfree"
    shutil.copytree(Path(fedfree.__file__).parent, root)
    monkeypatch.setattr(fedfree, "__file__", str(root / "__init__.py"))
    yield root
    this_release.cache_clear()


def test_it_is_the_same_wherever_it_is_installed_and_whatever_the_host_room_holds(installed: Path) -> None:
    before = this_release()
    (installed / "host" / "files.py").write_text("# another")
    this_release.cache_clear()
    assert this_release() == before
    require_same_release(before, "organisation")


def test_a_contract_that_changed_under_one_version_is_another(installed: Path) -> None:
    before = this_release()
    (installed / "codec.py").write_text("# another")
    this_release.cache_clear()
    with pytest.raises(VersionError) as refused:
        require_same_release(before, "coordinator")
    for named in (before, this_release(), "install the same on both sides"):
        assert named in str(refused.value)


def test_what_another_party_says_is_cut_to_one_short_line() -> None:
    with pytest.raises(VersionError) as refused:
        require_same_release("\x1b[2J\n" + "x" * 9999, "organisation")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 250
