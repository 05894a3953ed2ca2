"""Whether one's own contributions are in what came back: hashes compared, nobody asked.

A coordinator writes the provenance itself. That a contribution is named shows that the coordinator says so,
over its signature; that the weights hold nothing of one that is not named, only learning again would show.
"""

from collections.abc import Sequence
from pathlib import Path

from client.training.cache import MANIFEST
from client.training.ledger import SPENT, open_ledger
from fedfree.codec import Provenance, contribution_id
from fedfree.errors import ConfigError
from fedfree.host.files import read_file


def own_contributions(folders: Sequence[Path], ledger: Path | None) -> list[str]:
    """Ids of the contributions in these folders, or without any of all that the ledger knows.

    Raises:
        ConfigError: there is none to look for.
        StorageError: a folder without a manifest.
    """
    if folders:
        return list(dict.fromkeys(contribution_id(read_file(each / MANIFEST)) for each in folders))
    found = open_ledger(ledger)
    rows = found.entries() if found.path.is_file() else []
    ids = [each.contribution for each in rows if each.state == SPENT and each.contribution]
    if not ids:
        raise ConfigError(
            f"the ledger {found.path} knows no contribution: name another with --ledger, or name the folder "
            "of a contribution"
        )
    return list(dict.fromkeys(ids))


def is_in(provenance: Provenance, contributions: Sequence[str]) -> dict[str, bool]:
    """Each contribution to whether the provenance names it."""
    named = set(provenance.contributions)
    return {each: each in named for each in contributions}
