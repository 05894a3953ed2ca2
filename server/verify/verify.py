"""VERIFY: every contribution that arrived is accepted into the pool, or quarantined with the reason."""

import logging
from collections.abc import Callable
from typing import TypeVar

from fedfree.codec import Contribution, sha256
from fedfree.errors import ContributionError, StorageError
from server.events import Event, OnEvent
from server.storage.store import ACCEPTED, RECEIVED, Store
from server.verify.rules import RULES, Known, name_of, require_own_names

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Values = dict[str, int | float | str]


def verify_received(store: Store, on_event: OnEvent) -> None:
    """Accept or quarantine every contribution that has been received, in the order of their ids.

    Raises:
        ExtensionError: a rule of somebody's own has the name of one of ours.
    """
    require_own_names()
    store.discard_leftovers()
    received = store.ids(RECEIVED)
    pool = {store.weights_hash(identity): identity for identity in store.ids(ACCEPTED)} if received else {}
    for identity in received:
        try:
            known = Known(pool, store.starts)
            contribution, values = _look_at(store, identity, known)
        except ContributionError as error:
            store.quarantine(identity, str(error))
            on_event(Event("verify", "quarantined", {"contribution": identity, "reason": str(error)}))
        else:
            store.accept(identity)
            pool[sha256(contribution.weights)] = identity
            on_event(Event("verify", "accepted", {"contribution": identity, **values}))


def _look_at(store: Store, identity: str, known: Known) -> tuple[Contribution, _Values]:
    """The contract first, then every rule: the contribution, and what to record of it."""
    contribution = _refusing("contract", lambda: store.contribution(identity))
    values: _Values = {"architecture": str(contribution.architecture)}
    for rule in RULES:
        values |= _refusing(name_of(rule), lambda rule=rule: rule(contribution, known))  # type: ignore[misc]
    return contribution, values


def _refusing(name: str, look: Callable[[], _Result]) -> _Result:
    """Whatever goes wrong while a contribution is looked at is a reason to refuse it, and never ends the run.

    Our own faults too, since somebody may have looked for one; they are logged with where they are. A disk or
    a memory that fails says nothing of the contribution.
    """
    try:
        return look()
    except ContributionError as error:
        error.rule = error.rule or name
        raise
    except (StorageError, OSError, MemoryError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):  # which torch says with a RuntimeError
            raise MemoryError(str(error)) from error
        log.exception("rule %s failed, and the contribution is refused", name)
        refusal = ContributionError(
            f"it could not be looked at ({type(error).__name__}): ask the coordinator"
        )
        refusal.rule = name
        raise refusal from error
