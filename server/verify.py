"""VERIFY: what is looked at before a contribution joins the pool."""

import torch

from fedfree.codec import Contribution, sha256
from fedfree.errors import ContributionError
from fedfree.seeding import make_generator
from server.events import Event, OnEvent
from server.store import ACCEPTED, RECEIVED, Store

PROBE_IMAGES = 16


def verify_received(store: Store, on_event: OnEvent) -> None:
    """Accept or quarantine every contribution that has been received, in the order of their ids."""
    store.discard_leftovers()
    received = store.ids(RECEIVED)
    known = {store.weights_hash(identity): identity for identity in store.ids(ACCEPTED)} if received else {}
    for identity in received:
        try:
            contribution = store.contribution(identity)
            check_not_a_copy(contribution, known)
            check_behaviour(contribution)
        except ContributionError as error:
            store.quarantine(identity, str(error))
            on_event(Event("verify", "quarantined", {"contribution": identity, "reason": str(error)}))
        else:
            store.accept(identity)
            known[sha256(contribution.weights)] = identity
            on_event(
                Event(
                    "verify",
                    "accepted",
                    {"contribution": identity, "architecture": str(contribution.architecture)},
                )
            )


def check_not_a_copy(contribution: Contribution, known: dict[str, str]) -> None:
    """Refuse weights that are already in the pool."""
    original = known.get(sha256(contribution.weights))
    if original is not None:
        raise ContributionError(f"the same weights as contribution {original[:12]}…")


@torch.no_grad()
def check_behaviour(contribution: Contribution) -> None:
    """Refuse a network that computes nothing useful: outputs not finite, or the same for every image."""
    spec = contribution.input
    noise = torch.rand(
        PROBE_IMAGES, spec.channels, spec.height, spec.width, generator=make_generator(0, "verify")
    )
    logits = contribution.network()(spec.normalise(noise))
    if not logits.isfinite().all():
        raise ContributionError("the network's outputs on noise are not finite")
    if torch.equal(logits, logits[:1].expand_as(logits)):
        raise ContributionError("the network's outputs do not depend on the image")
