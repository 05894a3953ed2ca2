"""Flower ClientApp: contribute a model, adapt what comes back.

An organisation's configuration is the file that its node names (``config`` in the node configuration).
In a simulation it is ``organisations/<partition-id>.toml`` of the run directory.
"""

import logging
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from client.adapting import adapt as adaptation
from client.config import ClientConfig
from client.doors.beginning import begin
from client.doors.trust import Trust
from client.limits import check_meta_learner
from client.training.pretrain import pretrain
from fedfree.codec import decode_meta_learner, describe_meta_learner
from fedfree.errors import ConfigError, FedFreeError, StartError, TooMuchError, VersionError
from fedfree.flower_records import (
    CONTRIBUTE,
    ORGANISATION_FAILED,
    accuracies_to_records,
    brings_start,
    check_release,
    from_records,
    further_named,
    signature_of,
    start_named,
    start_wanted,
    to_records,
)

log = logging.getLogger(__name__)

RAISE_BUGS = "raise-bugs"
"""Node configuration, set by the in-process engine alone: what is not a FedFreeError propagates."""


def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower mod: refuse a coordinator of another release; of an exception say only the class.

    Flower would send an exception's text to the server, with paths and class names; here the full
    exception goes to the organisation's own log. With RAISE_BUGS in the node configuration, which no
    server can set, a programming error propagates to the person who runs server and clients in one
    process, while a FedFreeError is an organisation's failure there too.
    """
    try:
        check_release(message.content, "coordinator")
        return call_next(message, context)
    except Exception as error:
        if context.node_config.get(RAISE_BUGS) and not isinstance(error, FedFreeError):
            raise
        # They name versions, hashes, and what was asked of how much is allowed, and nothing else.
        if isinstance(error, VersionError | StartError | TooMuchError):
            return Message(Error(ORGANISATION_FAILED, str(error)), reply_to=message)
        step = "train" if message.metadata.message_type == CONTRIBUTE else "adapt the meta-learner"
        log.error("could not %s: %s", step, error, exc_info=not isinstance(error, FedFreeError))
        reason = f"the organisation could not {step}: {type(error).__name__}"
        return Message(Error(ORGANISATION_FAILED, reason), reply_to=message)


app = ClientApp()


@app.train("contribute", mods=[guard])
def contribute(message: Message, context: Context) -> Message:
    """Train, or take the model trained before, and send it; where the start is missing, ask for that."""
    config = read_config(context)
    sent = from_records(message.content) if brings_start(message.content) else None
    named = start_named(message.content), *further_named(message.content)
    trust, signature = _trust(config, context), signature_of(message.content)
    starts = [each for each in named if each]
    begun = begin(config, starts, sent, lambda manifest: trust.accept("start", manifest, signature))
    if isinstance(begun, str):
        return Message(start_wanted(begun), reply_to=message)
    manifest, weights = pretrain(begun)
    return Message(to_records(manifest, weights), reply_to=message)


@app.evaluate("adapt", mods=[guard])
def adapt(message: Message, context: Context) -> Message:
    """Measure the meta-learner on the organisation's new classes; numbers leave only where it allows it."""
    config = read_config(context)
    manifest, weights = from_records(message.content)
    _trust(config, context).accept("meta-learner", manifest, signature_of(message.content))
    check_meta_learner(describe_meta_learner(manifest), config.limits)
    results = adaptation.evaluate(decode_meta_learner(manifest, weights), config)
    for result in results:
        log.info("%s: %s", result.spec.name, result.accuracy)
    if not config.share_metrics:
        return Message(RecordDict(), reply_to=message)
    shared = accuracies_to_records((result.spec, result.accuracy) for result in results)
    return Message(shared, reply_to=message)


def read_config(context: Context) -> ClientConfig:
    """The configuration of the organisation that this node belongs to; raises ConfigError."""
    return ClientConfig.read(_config_file(context))


def _config_file(context: Context) -> Path:
    if own := context.node_config.get("config"):
        return Path(str(own))
    run, partition = context.run_config.get("run"), context.node_config.get("partition-id")
    if not run or partition is None:
        raise ConfigError(
            "this node has no configuration: start flower-supernode with --node-config 'config=\"FILE\"'"
        )
    return Path(str(run)) / "organisations" / f"{partition}.toml"


def _trust(config: ClientConfig, context: Context) -> Trust:
    """What is believed of the coordinator; what is known of it is beside the node's configuration."""
    return Trust.beside(_config_file(context), config.coordinator_key)
