"""The program that an organisation's SuperNode starts for a message, in place of Flower's ``flwr-clientapp``.

Flower's installs the app bundle that the coordinator's SuperLink sends, and executes it beside the private
images. This one executes the client app of its own installation, whatever arrives, and answers a bundle that
this release does not make with both hashes.
"""

import sys
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.cli.build import build_fab_from_files
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as runtime

import fedfree
from client.doors.flower_app import app
from client.doors.flower_node import REPLACED
from fedfree.codec import sha256, short
from fedfree.flower_records import ORGANISATION_FAILED
from fedfree.host.flower_bundle import bundle_files

App = Callable[[Message, Context], Message]


class OwnApp:
    """Stands where Flower installs what it was sent, and where it loads what it installed."""

    def __init__(self) -> None:
        self._sent = ""

    def install(self, bundle: bytes, *, skip_prompt: bool) -> None:
        """Take note of what a coordinator sent, and leave it unread."""
        del skip_prompt
        self._sent = sha256(bundle)

    def load(self, *of_the_bundle: object) -> App:
        """This installation's client app, or what refuses on its behalf."""
        own = sha256(build_fab_from_files(bundle_files())[0])
        return app if self._sent == own else refusing(self._sent, own)


def refusing(sent: str, own: str) -> App:
    """An app whose only answer is that another bundle was sent than this release makes."""
    reason = (
        f"the coordinator's app bundle is {short(sent)}, and fedfree {fedfree.__version__} here makes "
        f"{short(own)}: install the same release, with the same Flower, on both sides"
    )
    return lambda message, context: Message(Error(ORGANISATION_FAILED, reason), reply_to=message)


def main() -> None:
    """Answer one message, as Flower's program would, which parses the arguments and talks to the node."""
    own = OwnApp()
    _stand_in("install_from_fab", own.install)
    _stand_in("install_app_dependencies", lambda *_, **__: None)
    _stand_in("get_load_client_app_fn", lambda **_: own.load)
    sys.argv[0] = REPLACED
    flwr_clientapp()


def _stand_in(name: str, ours: Callable[..., object]) -> None:
    """Replace what Flower's program calls; another Flower, which calls something else, is none to run."""
    if not callable(getattr(runtime, name, None)):
        raise RuntimeError(f"this Flower has no {name} to stand in for: install flwr as fedfree pins it")
    setattr(runtime, name, ours)


if __name__ == "__main__":
    main()
