"""Flower ServerApp: messages in and out, nothing else.

The run directory is named by the run's configuration (``run``), absolute or relative to the working
directory of the SuperLink's process. Contributions already in its store count, so starting again
continues a run that was cut short.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedfree.codec import MetaLearner
from fedfree.errors import ConfigError, ContributionError, printable
from fedfree.flower_records import (
    ADAPT,
    CONTRIBUTE,
    ORGANISATION_FAILED,
    accuracies_from_records,
    check_release,
    from_records,
    question,
    question_with_start,
    start_named,
    to_records,
    wants_start,
)
from fedfree.host.files import discard
from fedfree.release import this_release
from fedfree.start import LoadedStart, encode_start, require_same_start
from server.config import CollectConfig
from server.events import Event, OnEvent, ignore
from server.run import learn_held
from server.storage.run_directory import RunDirectory
from server.storage.store import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
ADAPT_TIMEOUT_SECONDS = 3600.0
"""How long answers to the meta-learner are waited for; it is on disk by then, so nothing is lost."""
MAX_ASKS = 3
"""How often a node is asked that goes offline each time."""

_NODE_OFFLINE = 5
_FLOWER_ERRORS = {
    0: "the organisation's Flower node failed",
    1: f"the organisation's Flower node could not load the ClientApp: "
    f"is its FedFREE {this_release()}, as here?",
    2: "the organisation's ClientApp raised an exception",
    3: "the message expired before the organisation took it",
    4: "the organisation's reply expired before it could be fetched",
    _NODE_OFFLINE: "the organisation went offline",
    6: "a precondition of the organisation's ClientApp failed",
    7: "the organisation's Flower node refused the app bundle",
    8: "the organisation's ClientApp process crashed",
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run directory that ``run`` names."""
    run = str(context.run_config.get("run", ""))
    if not run:
        raise ConfigError(
            "the run configuration names no run directory: prepare one with `fedfree-sim prepare`"
        )
    at_once = context.run_config.get("at-once", 0)
    if not isinstance(at_once, int) or at_once < 0:
        raise ConfigError(
            f"the run configuration's at-once is {at_once!r}: use a whole number, 0 for all nodes"
        )
    serve(grid, Path(run), at_once=at_once)


def serve(grid: Grid, path: Path, *, at_once: int = 0, on_event: OnEvent = ignore) -> None:
    """Collect contributions, learn from them, and hand the meta-learner to everyone who is there.

    Args:
        at_once: how many nodes may be at work on a question; 0: all. Flower's simulation looks through every
            message under way for every node all the time, so that a thousand of them keep a core busy.

    Raises:
        FederationError: too few organisations contributed. This and any other failure also leaves
            its reason in the run directory, for an engine that runs this in another process.
        ConfigError: another process learns there; that leaves nothing.
    """
    run = RunDirectory(path)
    with run.held():
        discard(run.error)
        try:
            _federate(grid, run, at_once, on_event)
        except Exception as error:
            run.write_error(error)
            raise


def _federate(grid: Grid, run: RunDirectory, at_once: int, on_event: OnEvent) -> None:
    recorded = run.recorded(on_event)

    def broadcast(manifest: bytes, meta_learner: MetaLearner) -> None:
        size = len(manifest) + len(meta_learner.weights)
        recorded(Event("broadcast", "finished", {"bytes": size}))
        content = to_records(manifest, meta_learner.weights, run.published_signature(manifest))
        run.write_adaptation(adapt(grid, content, recorded, at_once=at_once))

    collect(grid, run.store(), run.config().collect, recorded, run.start_signature, at_once=at_once)
    learn_held(run, on_event=on_event, broadcast=broadcast)


class Conversation:
    """One question to every node: who has been asked, and whose reply is awaited.

    A node that goes offline before it answers is asked again when it is back, MAX_ASKS times in all.
    """

    def __init__(
        self, grid: Grid, message_type: str, content: RecordDict, *, ttl_seconds: float, at_once: int = 0
    ) -> None:
        self._grid = grid
        self._message_type = message_type
        self._content = content
        self._ttl_seconds = ttl_seconds
        self._at_once = at_once
        self._seen: set[int] = set()
        self._awaited: dict[str, int] = {}
        self._asks: Counter[int] = Counter()
        self._offline: set[int] = set()

    @property
    def awaited(self) -> set[int]:
        """Nodes that were asked and have not answered."""
        return set(self._awaited.values())

    @property
    def seen(self) -> int:
        """How many nodes were online at least once."""
        return len(self._seen)

    def ask_newcomers(self) -> None:
        """Ask the online nodes that were never asked, or that are back, while not too many are at work."""
        online = list(self._grid.get_node_ids())
        self._seen.update(online)
        for node in online:
            if self._at_once and len(self._awaited) >= self._at_once:
                return
            if node not in self._asks or node in self._offline:
                self._ask(node)

    def ask_with(self, node: int, content: RecordDict) -> None:
        """Ask a node that has answered once more, with other content; raises ContributionError too often."""
        if self._asks[node] >= MAX_ASKS:
            raise ContributionError(f"the organisation was asked {MAX_ASKS} times, and sends no model")
        self._ask(node, content)

    def _ask(self, node: int, content: RecordDict | None = None) -> None:
        # One at a time: a Grid may take fewer messages than it is given, without saying which.
        message = Message(content or self._content, node, self._message_type, ttl=self._ttl_seconds)
        for message_id in self._grid.push_messages([message]):
            self._awaited[message_id] = node
            self._asks[node] += 1
            self._offline.discard(node)

    def replies(self) -> Iterator[tuple[int, Message]]:
        """Node and reply, for every reply that has arrived and is final."""
        for reply in self._grid.pull_messages(list(self._awaited)):
            node = self._awaited.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                log.warning("passed over a reply to a message that was not sent")
            elif _is_offline(reply) and self._asks[node] < MAX_ASKS:
                self._offline.add(node)
            else:
                yield node, reply


def collect(
    grid: Grid,
    store: Store,
    config: CollectConfig,
    on_event: OnEvent,
    sign_start: Callable[[bytes], bytes],
    *,
    at_once: int = 0,
) -> None:
    """Ask every node for its contribution as it appears, and store each the moment it arrives.

    Returns when as many organisations as expected have contributed or failed, or when time is up;
    whether that is enough is the pipeline's decision.
    """
    known, answered, failed = Contributors(store), set[int](), set[int]()
    content = question(*(each.start.sha256 for each in store.starts))
    conversation = Conversation(
        grid, CONTRIBUTE, content, ttl_seconds=config.timeout_seconds, at_once=at_once
    )
    deadline = time.monotonic() + config.timeout_seconds
    on_event(Event("collect", "started", {"done": len(known), "of": config.organisations}))

    def is_settled() -> bool:
        if max(len(known), len(answered) + len(failed)) >= config.organisations:
            return True
        # In a continued run those who contributed before may be gone for good.
        return not conversation.awaited and len(known) + len(failed) >= config.organisations

    while not is_settled() and time.monotonic() < deadline:
        known.look()  # what came through the other door meanwhile
        conversation.ask_newcomers()
        heard = False
        for node, reply in conversation.replies():
            heard = True
            try:
                content = _content(reply)
                check_release(content, "organisation")
                if store.starts and wants_start(content):
                    wanted = _wanted(store.starts, content)
                    signature = sign_start(encode_start(wanted.start))
                    conversation.ask_with(node, question_with_start(wanted, signature))
                    continue
                # A node keeps its number, and so its one voice, however often it is asked.
                identity = store.receive(*from_records(content), organisation=f"node {node}")
            except ContributionError as error:
                failed.add(node)
                on_event(Event("collect", "failed", {"node": node, "reason": str(error)}))
            else:
                known.look()
                answered.add(node)
                counts = {"done": len(known), "of": config.organisations}
                who: dict[str, int | str] = {"node": node, "contribution": identity}
                on_event(Event("collect", "progress", {**counts, **who}))
        _rest(heard)
    missing = max(0, config.organisations - len(known) - len(failed))
    summary = {"done": len(known), "failed": len(failed), "missing": missing, "of": config.organisations}
    on_event(Event("collect", "finished", summary))


class Contributors:
    """Who handed something over: an organisation counts once; of unknown ones, each model does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._who: dict[str, str] = {}
        self.look()

    def look(self) -> None:
        """Note what came since."""
        for identity in self._store.all_ids():
            if identity not in self._who:
                self._who[identity] = self._store.organisation(identity) or identity

    def __len__(self) -> int:
        return len(set(self._who.values()))


def _wanted(starts: Sequence[LoadedStart], content: RecordDict) -> LoadedStart:
    """The start that an organisation lacks; raises ContributionError where it is none of these."""
    known = {each.start.sha256: each for each in starts}
    named = start_named(content) or next(iter(known))
    require_same_start(named, list(known))
    return known[named]


def adapt(grid: Grid, content: RecordDict, on_event: OnEvent, *, at_once: int = 0) -> list[dict[str, object]]:
    """Send the meta-learner to every node that is online, late joiners included.

    Returns:
        What each answered, in the order of node ids, which says nothing of who it is.
    """
    conversation = Conversation(grid, ADAPT, content, ttl_seconds=ADAPT_TIMEOUT_SECONDS, at_once=at_once)
    deadline = time.monotonic() + ADAPT_TIMEOUT_SECONDS
    answers: dict[int, dict[str, object]] = {}
    conversation.ask_newcomers()
    on_event(Event("adapt", "started", {"done": 0, "of": conversation.seen}))
    while conversation.awaited and time.monotonic() < deadline:
        heard = False
        for node, reply in conversation.replies():
            heard = True
            answers[node] = _read_answer(node, reply, on_event)
            on_event(Event("adapt", "progress", {"done": len(answers), "of": conversation.seen}))
        _rest(heard)
        conversation.ask_newcomers()
    for node in conversation.awaited:
        answers[node] = {"error": f"no answer within {ADAPT_TIMEOUT_SECONDS:.0f} s"}
    on_event(Event("adapt", "finished", {"done": len(answers), "of": conversation.seen}))
    return [{"node": ordinal, **answers[node]} for ordinal, node in enumerate(sorted(answers))]


def _read_answer(node: int, reply: Message, on_event: OnEvent) -> dict[str, object]:
    try:
        return {"results": _results(_content(reply))}
    except ContributionError as error:
        on_event(Event("adapt", "failed", {"node": node, "reason": str(error)}))
        return {"error": str(error)}


def _results(records: RecordDict) -> list[Mapping[str, int | float]]:
    return [
        {
            "n_way": spec.n_way,
            "n_shot": spec.n_shot,
            "mean": accuracy.mean,
            "ci95": accuracy.ci95,
            "episodes": accuracy.episodes,
        }
        for spec, accuracy in accuracies_from_records(records)
    ]


def _content(reply: Message) -> RecordDict:
    """A reply's records; raises ContributionError with a reason that may be shown."""
    if reply.has_error():
        raise ContributionError(_reason(reply.error))
    if not reply.has_content():
        raise ContributionError("the organisation's reply is empty")
    return reply.content


def _reason(error: Error) -> str:
    """Words for an error reply; Flower's own hold whatever the exception said, so they are not repeated."""
    if error.code == ORGANISATION_FAILED and error.reason:
        return printable(error.reason, 200)
    return _FLOWER_ERRORS.get(error.code, f"the organisation's Flower node sent error {error.code}")


def _is_offline(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == _NODE_OFFLINE


def _rest(heard: bool) -> None:
    if not heard:
        time.sleep(POLL_SECONDS)
