"""What is read back is held against the hashes by which it was taken."""

from server.events import Event, OnEvent
from server.storage.store import ACCEPTED, RECEIVED, Store


def set_damaged_aside(store: Store, on_event: OnEvent) -> None:
    """Take what the disk has changed out of the pool, by name; whoever handed it over may do so again."""
    for place in (RECEIVED, ACCEPTED):
        for identity in store.ids(place):
            if name := store.damage(identity, place):
                reason = f"{name} is no longer what arrived, by its sha256: hand it over again"
                store.set_aside_damaged(identity, place, reason)
                on_event(Event("verify", "damaged", {"contribution": identity, "reason": reason}))
