"""Tokens: shown once, kept as hashes, known until they are revoked."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedfree.errors import AccessError, ConfigError
from server.doors.tokens import Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json")


def test_a_token_names_its_organisation(tokens: Tokens) -> None:
    issued = {name: tokens.add(name) for name in ("org-1", "org-2", "St.Mary_3")}
    assert len(set(issued.values())) == 3
    assert {name: tokens.organisation_of(token) for name, token in issued.items()} == {
        name: name for name in issued
    }
    assert tokens.organisations() == sorted(issued)


def test_the_file_holds_no_token_and_equal_tokens_would_not_look_equal(tokens: Tokens) -> None:
    issued = [tokens.add(name) for name in ("org-1", "org-2")]
    text = tokens.path.read_text()
    assert not any(token in text for token in issued)
    entries = list(json.loads(text).values())
    assert entries[0]["salt"] != entries[1]["salt"]
    assert all(len(entry["digest"]) == 64 for entry in entries)


@pytest.mark.parametrize("change", [str.upper, lambda token: token[:-1], lambda token: "", lambda t: t + "é"])
def test_anything_else_is_nobodys_token(tokens: Tokens, change: object) -> None:
    token = tokens.add("org-1")
    with pytest.raises(AccessError, match="wrong or was revoked"):
        tokens.organisation_of(change(token))  # type: ignore[operator]


def test_a_revoked_token_is_nobodys_and_a_new_one_is_another(tokens: Tokens) -> None:
    before = tokens.add("org-1")
    with pytest.raises(ConfigError, match="org-1 has a token: revoke it"):
        tokens.add("org-1")
    tokens.revoke("org-1")
    after = tokens.add("org-1")
    assert tokens.organisation_of(after) == "org-1"
    with pytest.raises(AccessError):
        tokens.organisation_of(before)


def test_who_has_no_token_cannot_lose_it(tokens: Tokens) -> None:
    with pytest.raises(ConfigError, match="org-1 has no token here: nobody has"):
        tokens.revoke("org-1")


@pytest.mark.parametrize("name", ["", "../org", "org 1", "org\n", "-org", "x" * 65, "[red]org"])
def test_a_name_that_could_be_mistaken_for_something_else_is_refused(tokens: Tokens, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name for an organisation"):
        tokens.add(name)
    assert not tokens.path.exists()


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ('{"org-1": {"salt": 3}}', "org-1")])
def test_a_damaged_file_is_named(tokens: Tokens, text: str, words: str) -> None:
    tokens.path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        tokens.organisations()


def test_the_file_is_for_its_owners_eyes_also_where_it_was_not(tokens: Tokens) -> None:
    tokens.add("org-1")
    assert tokens.path.stat().st_mode & 0o777 == 0o600
    tokens.path.chmod(0o644)
    tokens.revoke("org-1")
    assert tokens.path.stat().st_mode & 0o777 == 0o600


def test_a_token_is_refused_from_the_moment_it_expires_and_only_its_holder_is_told(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    tokens = Tokens(tmp_path / "tokens.json", clock=lambda: now)
    token = tokens.add("org-1", expires_days=2)
    now += timedelta(days=2, seconds=-1)
    assert tokens.organisation_of(token) == "org-1"
    now += timedelta(seconds=1)
    with pytest.raises(AccessError, match="the token expired on 2026-01-03: ask the coordinator"):
        tokens.organisation_of(token)
    with pytest.raises(AccessError, match="wrong or was revoked"):
        tokens.organisation_of(token + "x")
    assert tokens.expiries() == {"org-1": datetime(2026, 1, 3, tzinfo=UTC)}


def test_a_rotated_token_is_another_and_the_old_one_is_nobodys(tokens: Tokens) -> None:
    before = tokens.add("org-1")
    after = tokens.rotate("org-1", expires_days=1)
    assert tokens.organisation_of(after) == "org-1"
    with pytest.raises(AccessError, match="wrong or was revoked"):
        tokens.organisation_of(before)
    with pytest.raises(ConfigError, match="org-2 has no token here: org-1 has"):
        tokens.rotate("org-2")


def test_tokens_of_before_they_could_expire_are_still_good(tokens: Tokens) -> None:
    token = tokens.add("org-1")
    values = json.loads(tokens.path.read_text())
    del values["org-1"]["expires"]
    tokens.path.write_text(json.dumps(values))
    assert tokens.organisation_of(token) == "org-1"


@pytest.mark.parametrize(
    ("name", "expires", "words"),
    [("north", "2030-01-01T00:00:00", "timezone"), ("n\x1b[31m\n", "2030-01-01T00:00:00Z", "not a name")],
)
def test_an_entry_that_nobody_added_so_is_refused(
    name: str, expires: str, words: str, tokens: Tokens
) -> None:
    tokens.path.write_text(json.dumps({name: {"salt": "x", "digest": "y", "expires": expires}}))
    with pytest.raises(ConfigError, match=words):
        tokens.organisations()
