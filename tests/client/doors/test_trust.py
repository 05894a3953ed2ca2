"""What an organisation knows of its coordinator's key, and says of it."""

from pathlib import Path

from client.doors.trust import Trust
from fedfree.signing import make_key, public_key, sign, succeed

FIRST, SECOND = make_key(), make_key()
MANIFEST = b"a manifest"


def test_where_nothing_was_seen_and_nothing_pinned_no_key_is_known(tmp_path: Path) -> None:
    assert Trust(tmp_path / "known.json").words() == (
        "the coordinator's key is not known yet: the first that is seen will be believed"
    )


def test_the_key_that_was_seen_first_is_told_from_one_that_was_pinned(tmp_path: Path) -> None:
    path, key = tmp_path / "client.coordinator.json", public_key(FIRST)
    trust = Trust.beside(tmp_path / "client.toml")
    trust.accept("meta-learner", MANIFEST, sign("meta-learner", MANIFEST, FIRST, 1))
    assert path.is_file()
    assert trust.words() == f"the coordinator's key is {key} (the first that was seen)"
    assert Trust(path, key).words() == f"the coordinator's key is {key} (pinned)"


def test_a_key_that_was_replaced_is_said_with_the_one_before(tmp_path: Path) -> None:
    first, second = public_key(FIRST), public_key(SECOND)
    trust = Trust(tmp_path / "known.json", first)
    followed = sign("meta-learner", MANIFEST, SECOND, 1, [succeed(FIRST, second)])
    trust.accept("meta-learner", MANIFEST, followed)
    words = f"the coordinator's key is {second}, which has replaced {first} (the first that was seen)"
    assert Trust(tmp_path / "known.json").words() == words
