"""Pools to measure on: the contributions of a simulated federation, without its server."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.config import ClientConfig
from client.training.pretrain import pretrain
from server.events import ignore
from server.storage.run_directory import RunDirectory
from server.storage.store import Store
from server.verify.verify import verify_received
from simulations.config import SimulationConfig
from simulations.federation.prepare import prepare, read_organisations


@dataclass(frozen=True)
class MadePool:
    """Verified contributions, and who made each."""

    store: Store
    organisations: Mapping[str, ClientConfig]
    """By contribution id."""


def make_pool(run: Path, config: SimulationConfig) -> MadePool:
    """Prepare a run directory and collect every organisation's model; models trained before are taken."""
    prepare(run, config)
    store, organisations = RunDirectory(run).store(), {}
    for organisation in read_organisations(run, config):
        organisations[store.receive(*pretrain(organisation))] = organisation
    verify_received(store, ignore)
    return MadePool(store, organisations)
