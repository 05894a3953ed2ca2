"""The server as a Python function: from contributions in memory to the meta-learner.

The same steps as of ``fedfree-server learn``, VERIFY included, in a temporary folder.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from fedfree.codec import Contribution, MetaLearner, encode_contribution, short
from fedfree.errors import ConfigError
from fedfree.host.starts import load_start
from server import pipeline
from server.config import ServerConfig
from server.events import Event, OnEvent, ignore
from server.storage.store import Store

log = logging.getLogger(__name__)

OnRecovered = Callable[[Mapping[str, Tensor]], None]
"""Told what was recovered: of each contribution, by its id, uint8 [classes, channels, size, size]."""


def ignore_recovered(recovered: Mapping[str, Tensor]) -> None:
    """Look at nothing that was recovered."""


def learn(
    contributions: Iterable[Contribution],
    *,
    start: Path | str | None = None,
    preset: str | None = None,
    on_event: OnEvent = ignore,
    on_recovered: OnRecovered = ignore_recovered,
    **settings: object,
) -> MetaLearner:
    """Verify contributions, invert them, and learn the meta-learner that would be broadcast.

    A contribution that is refused is left out, as on a server: a warning is logged with the reason, and
    ``provenance.contributions`` names the others. The same contributions, settings, device kind and number
    of threads give the same bytes, in whatever order they are handed over.

    >>> meta_learner = learn(contributions, seed=1, iterations=2, invert={"steps": 1, "images_per_model": 8})
    >>> len(meta_learner.provenance.contributions), meta_learner.recipe.head
    (2, 'nearest_mean')

    Args:
        contributions: what ``client.api.contribute`` gives, or :func:`fedfree.codec.decode_contribution`
            makes of files.
        start: folder of the public start that they began from; None for random weights.
        preset: what the other settings begin from; ``start`` where there is a start, else ``default``.
        on_event: told what happens, such as the losses of each iteration.
        on_recovered: told in the end what the server saw: of each contribution one recovered image a class.
        settings: as in ``server.toml`` (docs/configuration.md), its tables as dictionaries.

    Raises:
        ConfigError: a setting that is unknown or out of range, a preset that is not for where the
            contributions began, or something that is no contribution.
        FederationError: fewer contributions accepted than ``collect.quorum``, two by default.
        StorageError, ContributionError: a start that cannot be read.
    """
    if isinstance(contributions, Contribution) or not isinstance(contributions, Iterable):
        raise ConfigError(f"expected a list of contributions, got a {type(contributions).__name__}")
    contributions = list(contributions)
    for each in contributions:
        if not isinstance(each, Contribution):
            raise ConfigError(f"expected contributions (client.api.contribute), got a {type(each).__name__}")
    preset = preset or ("start" if start else "default")
    config = ServerConfig.parse({"preset": preset, **settings}, origin="learn")
    began = load_start(Path(start)) if start else None
    with tempfile.TemporaryDirectory(prefix="fedfree-") as folder:
        store = Store(Path(folder), lambda: began)
        for each in contributions:
            store.receive(encode_contribution(each), each.weights)
        outcome = pipeline.run(store, config, on_event=_warning(on_event))
    on_recovered(outcome.gallery)
    return outcome.meta_learner


def _warning(on_event: OnEvent) -> OnEvent:
    """The same observer; what is refused is logged before."""

    def told(event: Event) -> None:
        if (event.stage, event.kind) == ("verify", "quarantined"):
            identity, reason = str(event.values["contribution"]), event.values["reason"]
            log.warning("contribution %s is left out: %s", short(identity), reason)
        on_event(event)

    return told
