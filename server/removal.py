"""Removal: a contribution leaves the pool for good, and what was learned from it is learned again without it.

Every model is a teacher from the first iteration on, so the last state that did not use a removed one is
nearly always the beginning; only where it had not been learned from yet does the checkpoint stay. From there
the same store, configuration and machine give, to the byte, what a run gives that never had it.
"""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime

from fedfree.codec import short
from fedfree.errors import ConfigError, FederationError, StorageError
from fedfree.host.files import discard
from server.events import Event, OnEvent
from server.storage.checkpoint import learned_from
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, RECEIVED, Store

_REMOVED = "removed by "


def find(store: Store, prefixes: Sequence[str]) -> list[str]:
    """Ids of the contributions that prefixes name: in the pool, waiting for it, or removed before.

    Raises:
        ConfigError: a prefix that names none, or several.
    """
    usable = [*store.ids(RECEIVED), *store.ids(ACCEPTED)]
    known = usable + [each for each in store.all_ids() if each not in usable and _is_removed(store, each)]
    found = []
    for prefix in prefixes:
        named = [each for each in known if prefix and each.startswith(prefix.lower())]
        if len(named) != 1:
            which = ", ".join(map(short, named)) or "none"
            raise ConfigError(
                f"{prefix!r} names {which} of {len(known)} contributions: give more of one's id, as "
                "`fedfree-server status --contributions` shows it"
            )
        found += [each for each in named if each not in found]
    return found


def remove(
    run: RunDirectory, prefixes: Sequence[str], why: str, on_event: OnEvent, *, by: str | None = None
) -> list[str]:
    """Take contributions out of a run that is held, with everything that was learned from them; returns ids.

    Given again after a kill it goes on where it was.

    Raises:
        ConfigError: a prefix that names none, or several, or no reason; nothing has changed.
        FederationError: too few would be left to learn from, or none from the first start of several;
            nothing has changed.
    """
    if not why.strip():
        raise ConfigError("no reason is given, which the report would show: say why, in a few words")
    store = run.store()
    ids = find(store, prefixes)
    left = [each for each in (*store.ids(ACCEPTED), *store.ids(RECEIVED)) if each not in ids]
    if len(left) < run.config().collect.quorum:
        raise FederationError(
            f"{len(left)} contributions would be left, the quorum is {run.config().collect.quorum}: wait for "
            "more organisations or lower collect.quorum; nothing was removed"
        )
    _require_first_start(run, store, left)
    for identity in ids:
        if not _is_removed(store, identity):
            when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            reason = f"{_REMOVED}{by or getpass.getuser()} on {when}: {why}"
            store.remove(identity, reason)
            on_event(Event("verify", "removed", {"contribution": identity, "reason": reason}))
    used = learned_from(run.checkpoint)
    if used is None or set(ids) & set(used):
        discard(run.checkpoint)
    run.withdraw_meta_learner()
    return ids


def _require_first_start(run: RunDirectory, store: Store, left: Sequence[str]) -> None:
    """Refuse to leave none, of several starts, that began where the meta-learner does."""
    first, *further = run.start_folders() or [""]
    if further and not any(_may_begin_from(first, store, each) for each in left):
        raise FederationError(
            f"no contribution would be left that began from {short(first)}, the first start of this run, "
            "where the meta-learner begins: wait for another; nothing was removed"
        )


def _may_begin_from(start: str, store: Store, identity: str) -> bool:
    """Whether a contribution began from a start, or waits to be looked at; a damaged one is set aside."""
    try:
        return store.place_of(identity) == RECEIVED or store.describe(identity).start == start
    except StorageError:
        return False


def _is_removed(store: Store, identity: str) -> bool:
    place = store.place_of(identity)
    return place not in (RECEIVED, ACCEPTED) and store.reason(identity).startswith(_REMOVED)
