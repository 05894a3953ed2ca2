"""A Flower Grid in this process: the real ClientApp on real messages, without SuperLink, Ray or network."""

import uuid
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.doors.flower_app import RAISE_BUGS

FIRST_NODE_ID = 100
"""Node of organisation 0; ids below are Flower's (1 is the SuperLink's)."""
_SUPERLINK_NODE_ID = 1
_NODE_OFFLINE = 5


class InProcessGrid(Grid):
    """Runs a message when its reply is pulled, one a call, so that replies arrive one after the other.

    An exception that the ClientApp lets through propagates to whoever pulls.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, UserConfigValue],
        *,
        organisations: int,
        goes_offline: Mapping[int, int] | None = None,
    ) -> None:
        """Set up the organisations' nodes.

        Args:
            goes_offline: for an organisation's index, how many of its messages meet a node that has
                gone offline.
        """
        self._client_app = client_app
        self._run = Run.create_empty(run_id=1)
        self._offline = {FIRST_NODE_ID + index: times for index, times in (goes_offline or {}).items()}
        self._contexts = {
            FIRST_NODE_ID + index: _context(FIRST_NODE_ID + index, index, organisations, dict(run_config))
            for index in range(organisations)
        }
        self._waiting: dict[str, Message] = {}
        # A Message takes its run and sender from here.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SUPERLINK_NODE_ID, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = {str(uuid.uuid4()): message for message in messages}
        for message_id, message in pushed.items():
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._answer(self._waiting.pop(message_id))]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [reply for each in self.push_messages(messages) for reply in self.pull_messages([each])]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if self._offline.get(node, 0) > 0:
            self._offline[node] -= 1
            return Message(Error(_NODE_OFFLINE, "node offline"), reply_to=message)
        return self._client_app(message, self._contexts[node])


def _context(node: int, index: int, organisations: int, run_config: dict[str, UserConfigValue]) -> Context:
    node_config: dict[str, UserConfigValue] = {
        "partition-id": index,
        "num-partitions": organisations,
        RAISE_BUGS: True,
    }
    return Context(1, node, node_config, RecordDict(), run_config)
