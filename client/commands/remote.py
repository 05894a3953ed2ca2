"""``contribute``, ``status``, ``fetch``: the coordinator's gRPC door, from the organisation's side."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.files import manifest_beside, signature_beside
from client.commands.options import LimitsFile
from client.doors.trust import Trust
from client.limits import read_limits
from client.training.cache import MANIFEST, WEIGHTS
from fedfree.codec import decode_contribution
from fedfree.errors import AccessError, ConfigError
from fedfree.host.channel import Address
from fedfree.host.cli import App
from fedfree.host.files import read_file, read_piped
from fedfree.signing import KEY_PATTERN

if TYPE_CHECKING:
    from client.doors.grpc_remote import Remote

app = App()

DOOR = "HOST:PORT of the coordinator's gRPC door."
CA = Annotated[Path | None, typer.Option("--ca", help="The coordinator's CA, PEM (default: public ones).")]
TokenFile = Annotated[Path | None, typer.Option(help="Holds your token (default: $FEDFREE_TOKEN).")]
Certificate = Annotated[Path | None, typer.Option("--cert", help="Your own certificate, if it asks for one.")]
Key = Annotated[Path | None, typer.Option("--key", help="Private key of your certificate.")]
CoordinatorKey = Annotated[
    str | None,
    typer.Option(
        help="The key that the coordinator signs with, as it told you (default: the first that is seen)."
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS; to this machine only.")]


@app.command(name="contribute")
def contribute_command(
    model: Annotated[Path, typer.Argument(help="Folder written by pretrain, or weights as safetensors.")],
    to: Annotated[str, typer.Option(help=DOOR)],
    manifest: Annotated[
        Path | None, typer.Option(help="manifest.pb, or the folder that holds it; for weights alone.")
    ] = None,
    ca: CA = None,
    token_file: TokenFile = None,
    cert: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Send a contribution to the coordinator; run again, it tells what became of it and sends nothing."""
    parts = _read_contribution(model, manifest)
    contribution = decode_contribution(*parts)
    with connected(to, ca, token_file, cert, key, insecure) as remote:
        remote.require_same_start(contribution)
        state = remote.contribute(*parts)
    typer.echo(f"{state.identity}: {state.place}{': ' if state.reason else ''}{state.reason}")


@app.command()
def status(
    from_: Annotated[str, typer.Option("--from", help=DOOR)],
    ca: CA = None,
    token_file: TokenFile = None,
    cert: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Ask the coordinator how far the run is."""
    with connected(from_, ca, token_file, cert, key, insecure) as remote:
        run = remote.run()
    typer.echo(
        f"{run.received} received, {run.accepted} accepted, {run.quarantined} quarantined; "
        f"learning: iteration {run.iteration} of {run.iterations or 'none yet'}; "
        f"meta-learner: {run.meta_learner_sha256 or 'none yet'}"
        + (f"; start: {' or '.join(run.starts)}" if run.starts else "")
    )


@app.command()
def fetch(
    from_: Annotated[str, typer.Option("--from", help=DOOR)],
    out: Annotated[Path, typer.Option(help="Where the weights go; their manifest goes beside them.")] = Path(
        "meta_learner.safetensors"
    ),
    coordinator_key: CoordinatorKey = None,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Take one that is older than what came before.")
    ] = False,
    limits: LimitsFile = None,
    ca: CA = None,
    token_file: TokenFile = None,
    cert: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Fetch the meta-learner, going on where an earlier attempt was cut off."""
    allowed = read_limits(limits)
    trust = trusted(from_, coordinator_key, allow_older=allow_older)
    with connected(from_, ca, token_file, cert, key, insecure, trust) as remote:
        files = out, manifest_beside(out), signature_beside(out)
        meta_learner = remote.fetch(*files, limits=allowed)
    typer.echo(f"wrote {out} ({meta_learner.architecture}, {len(meta_learner.weights)} bytes)")


def _read_contribution(model: Path, manifest: Path | None) -> tuple[bytes, bytes]:
    """Manifest and weights of a folder, or of two files."""
    if model.is_dir():
        if manifest is not None:
            raise ConfigError(f"{model} is a folder with a manifest of its own: leave out --manifest")
        return read_file(model / MANIFEST), read_file(model / WEIGHTS)
    if manifest is None:
        raise ConfigError(f"{model} is not a folder: name the manifest of these weights with --manifest")
    return read_file(manifest / MANIFEST if manifest.is_dir() else manifest), read_file(model)


@contextmanager
def connected(
    door: str,
    ca: Path | None,
    token_file: Path | None,
    cert: Path | None,
    key: Path | None,
    insecure: bool,
    trust: Trust | None = None,
) -> Iterator["Remote"]:
    """A coordinator's gRPC door, by the options that every command to it takes."""
    from client.doors.grpc_remote import connect, credentials

    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together: give both or neither")
    if insecure and (ca or cert):
        raise ConfigError("--insecure talks without TLS: leave out --ca, --cert and --key")
    tls = None if insecure else credentials(ca, cert, key)
    with connect(Address.parse(door), tls, _token(token_file), trust) as remote:
        yield remote


def trusted(door: str, coordinator_key: str | None, *, allow_older: bool = False) -> Trust:
    """What is believed of the coordinator behind a door; raises ConfigError where the key is none."""
    if coordinator_key and not re.fullmatch(KEY_PATTERN, coordinator_key):
        raise ConfigError(
            f"--coordinator-key is {coordinator_key!r}: give the 64 digits of `fedfree-server key show`"
        )
    return Trust.at(str(Address.parse(door)), coordinator_key, allow_older=allow_older)


def _token(file: Path | None) -> str:
    """The organisation's token: from a file or the environment, never from the command line."""
    if file is None:
        token = os.environ.get("FEDFREE_TOKEN", "").strip()
    else:
        token = read_piped(file).decode(errors="replace").strip()
    if not (token and token.isascii() and token.isprintable()):
        raise AccessError(
            f"{file or '$FEDFREE_TOKEN'} holds no token: ask the coordinator for yours, "
            "and name its file with --token-file or set FEDFREE_TOKEN"
        )
    return token
