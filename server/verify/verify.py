"""VERIFY: every contribution that arrived is accepted into the pool, or quarantined with the reason."""

from fedfree.codec import sha256
from fedfree.errors import ContributionError
from server.events import Event, OnEvent
from server.storage.store import ACCEPTED, RECEIVED, Store
from server.verify.rules import RULES, Known


def verify_received(store: Store, on_event: OnEvent) -> None:
    """Accept or quarantine every contribution that has been received, in the order of their ids."""
    store.discard_leftovers()
    received = store.ids(RECEIVED)
    pool = {store.weights_hash(identity): identity for identity in store.ids(ACCEPTED)} if received else {}
    for identity in received:
        try:
            contribution = store.contribution(identity)
            recorded = [rule(contribution, Known(pool, store.start, store.further_starts)) for rule in RULES]
        except ContributionError as error:
            store.quarantine(identity, str(error))
            on_event(Event("verify", "quarantined", {"contribution": identity, "reason": str(error)}))
        else:
            store.accept(identity)
            pool[sha256(contribution.weights)] = identity
            values: dict[str, int | float | str] = {
                "contribution": identity,
                "architecture": str(contribution.architecture),
            }
            for each in recorded:
                values |= each
            on_event(Event("verify", "accepted", values))
