"""Learning in a run directory, from its contributions to its published meta-learner.

On several devices or cores: ``torchrun --nproc-per-node=K -m server.run RUN``. Each process takes its share
of every meta-batch, of the teachers' questions and of the paths (configure ``learn.paths = K``); gradients
and ends of paths are all-reduced. The result is the one that a single process gets from the same run
directory, up to the order of additions.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import torch.distributed
import typer

from fedfree.codec import MetaLearner
from fedfree.errors import ConfigError
from fedfree.host.cli import App, run_app
from fedfree.host.files import discard
from server import pipeline
from server.config import ServerConfig
from server.events import OnEvent, ignore
from server.learning.team import ALONE, Team
from server.storage.run_directory import RunDirectory

app = App("server.run", "Learn from the contributions of a run directory, on several processes.")


@app.command()
def main(run: Annotated[Path, typer.Argument(help="Run directory with server.toml and store/.")]) -> None:
    """Verify, invert, meta-learn, and write the meta-learner into the run directory."""
    directory = RunDirectory(run)
    with torchrun_team(directory.config()) as team:
        learn(directory, team=team)
    if team.size > 1:
        end_process()


def learn(directory: RunDirectory, *, team: Team = ALONE, on_event: OnEvent = ignore) -> None:
    """As :func:`learn_held`, in a run directory that is this process's alone meanwhile.

    Raises:
        ConfigError: another process holds it.
        FederationError: fewer accepted contributions than the quorum.
    """
    with directory.held() if team.leads else contextlib.nullcontext():
        learn_held(directory, team=team, on_event=on_event)


def learn_held(
    directory: RunDirectory,
    *,
    team: Team = ALONE,
    on_event: OnEvent = ignore,
    broadcast: Callable[[bytes, MetaLearner], None] | None = None,
) -> None:
    """Run the pipeline on a run directory, from its last checkpoint on, and write what comes out there.

    Args:
        broadcast: is given the manifest and the meta-learner once they are on disk. Only when it returns does
            the checkpoint go, so that whoever was killed in it need not learn again.

    Raises:
        ConfigError: what comes out could not be signed, or written.
        FederationError: fewer accepted contributions than the quorum.
    """
    if team.leads:
        directory.require_publishable()
    outcome = pipeline.run(
        directory.store(),
        directory.config(),
        checkpoint=directory.checkpoint,
        public_images=directory.public_images(),
        team=team,
        on_event=directory.recorded(on_event) if team.leads else ignore,
    )
    if team.leads:
        directory.write_recovered(outcome.gallery)
        manifest = directory.write_meta_learner(outcome.meta_learner)
        if broadcast:
            broadcast(manifest, outcome.meta_learner)
        discard(directory.checkpoint)


@contextlib.contextmanager
def torchrun_team(config: ServerConfig) -> Iterator[Team]:
    """The processes that torchrun started, each on its own GPU where there are GPUs.

    Raises:
        ConfigError: more processes than models in a meta-batch.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > config.invert.models_per_iteration:
        raise ConfigError(
            f"{size} processes cannot share a meta-batch of {config.invert.models_per_iteration} models: "
            "start fewer, or raise invert.models_per_iteration"
        )
    if size == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    team = Team(torch.distributed.get_rank(), size)
    try:
        yield team
        team.wait()  # or the first to end would close its connections on those who still work
    finally:
        torch.distributed.destroy_process_group()


def end_process() -> NoReturn:
    """End with status 0 as soon as everything said is written, without unwinding the interpreter.

    A thread of the communication library that asks for the interpreter's lock meanwhile is ended by it in the
    midst of C++, which aborts the process ("terminate called without an active exception") after its work.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    run_app(app)
