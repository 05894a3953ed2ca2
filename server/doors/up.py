"""``fedfree-server up``: a SuperLink with TLS and known keys, the run in it, and both again if they break."""

import logging
from pathlib import Path

from fedfree.errors import FederationError
from fedfree.host.channel import Address
from fedfree.host.files import discard
from fedfree.host.flower_process import environment, stop_all
from fedfree.host.lock import exclusive, require_free
from fedfree.host.supervise import ProcessEndedError, persist, signals_raise
from fedfree.host.tls import check_server, read_certificate
from server.doors.deployment import Deployment
from server.doors.superlink import COMPLETED, SuperLink, Tail, follow, reason, superlink
from server.events import OnEvent

log = logging.getLogger(__name__)

_ANYWHERE = ("0.0.0.0", "::")
_FAILED = "finished:failed"


def up(deployment: Deployment, on_event: OnEvent) -> None:
    """Run the federation to its end, continuing one that was cut off.

    Raises:
        FederationError: the run failed; the message gives the reason.
        ConfigError: a configuration that the run could not end with.
    """
    deployment.run.require_preset()
    read_certificate(deployment.certificate, deployment.key)
    retries = deployment.config().retries
    home = _home(deployment)
    with signals_raise(), exclusive(home):
        stop_all(home)  # what an `up` that was killed left behind
        require_free(deployment.path)  # what learns here holds it: the server app, once the run has started
        persist(lambda: _attempt(deployment, home, on_event), retries=retries)


def _home(deployment: Deployment) -> Path:
    return deployment.path.resolve() / ".flwr"


def _attempt(deployment: Deployment, home: Path, on_event: OnEvent) -> None:
    """One life of the SuperLink, and one run in it."""
    listen = Address.parse(deployment.config().listen)
    here = Address("127.0.0.1", listen.port) if listen.host in _ANYWHERE else listen
    root = deployment.path.resolve()
    options = (
        *("--ssl-ca-certfile", str(root / deployment.authority.name)),
        *("--ssl-certfile", str(root / deployment.certificate.name)),
        *("--ssl-keyfile", str(root / deployment.key.name)),
        *("--enable-supernode-auth", "--database", str(root / deployment.database.name)),
    )
    authority = root / deployment.authority.name
    quiet = environment(home, here)
    with superlink(home, listen, *options, environment=quiet, reached_at=here, authority=authority) as flower:
        check_server(here, authority)
        log.info("SuperLink listens on %s", listen)
        flower.stop_unfinished()
        register = _Registrar(deployment, flower)
        register()
        _run(flower, deployment, register, on_event)


def _run(flower: SuperLink, deployment: Deployment, register: "_Registrar", on_event: OnEvent) -> None:
    directory = deployment.run
    discard(directory.error)
    events = Tail(directory.events)
    run_id = flower.submit(deployment.path.resolve())
    log.info("run %s started", run_id)
    status, details = follow(flower, run_id, directory, events, on_event, meanwhile=register)
    if status == COMPLETED:
        log.info("run %s completed", run_id)
        return
    if status == _FAILED and not directory.error.exists():
        raise ProcessEndedError(f"the server app broke down: {details.strip() or 'Flower does not say why'}")
    raise FederationError(reason(directory, details) or f"the Flower run ended as {status}")


class _Registrar:
    """Tells the SuperLink of every enrolled organisation, also of one enrolled while it runs."""

    def __init__(self, deployment: Deployment, flower: SuperLink) -> None:
        self._deployment = deployment
        self._flower = flower
        self._done: set[str] = set()

    def __call__(self) -> None:
        for name, public_key in self._deployment.enrolled().items():
            if name not in self._done:
                self._flower.register(name, public_key.resolve())
                self._done.add(name)
                log.info("%s may take part", name)
