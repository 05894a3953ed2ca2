"""The Flower app that the SuperLink is given: the same from a checkout and from an installed wheel."""

from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedfree.errors import FederationError
from fedfree.host import flower_bundle
from fedfree.host.flower_bundle import write_bundle

ROOT = Path(__file__).parents[3]
SIDES = flower_bundle.PACKAGES


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_flower_takes_it_wherever_it_was_put_together(tmp_path: Path) -> None:
    assert build_fab_from_disk(write_bundle(tmp_path / "here")) == build_fab_from_disk(
        write_bundle(tmp_path / "there")
    )


def test_it_holds_the_sources_of_both_sides_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "client").mkdir(parents=True)
    (tmp_path / "bundle" / "client" / "left.py").write_text("# of an earlier release")
    written = write_bundle(tmp_path / "bundle")
    found = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    sources = {
        str(path.relative_to(ROOT)) for side in flower_bundle.PACKAGES for path in (ROOT / side).rglob("*.py")
    }
    assert found == sources | {"pyproject.toml"}


def test_without_one_side_installed_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_bundle, "PACKAGES", ("server", "nosuchside"))
    with pytest.raises(FederationError, match="needs nosuchside/"):
        write_bundle(tmp_path / "bundle")
