"""``look``: what a training would read, before there is one."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.commands.contributing import PRETRAIN_FLAGS
from client.commands.progress import ends_on_ctrl_c, shown_progress
from client.config import ClientConfig
from client.data.look import HOW_TO_CONVERT, ClassFound, Copies, Look, Unreadable, look
from client.training.fit import read_start
from client.training.foresee import Foresight, foresee
from fedfree.errors import DataError, FedFreeError
from fedfree.host.cli import App
from fedfree.host.images.formats import Fit
from fedfree.host.images.passed_over import readable
from fedfree.host.options import Chosen, configured

app = App()

SHOWN_CLASSES, SHOWN = 20, 3
"""Rows of the table, and examples of everything else; ``--json`` has all."""
FEWEST_MEASURED = 20
"""Images a class in the smallest federations that docs/results.md measures (glyphs and Omniglot)."""

NOT_SQUARE: dict[Fit, str] = {
    "crop": "so that the middle is cut out",
    "letterbox": "so that grey bars are added",
    "squeeze": "so that they are distorted",
}

LOOK_ARGUMENTS = {"images": "data.source"}
_WITHOUT = {"data", "epsilon_budget", "initial_weights", "initial_weights_public", "cache", "ledger", "seed"}
LOOK_FLAGS = {name: path for name, path in PRETRAIN_FLAGS.items() if name not in _WITHOUT}
"""Those of ``pretrain`` on which it depends what is read, and how long training takes."""


@app.command(name="look", no_args_is_help=True)
@configured(ClientConfig, LOOK_FLAGS, arguments=LOOK_ARGUMENTS)
def look_command(
    chosen: Chosen[ClientConfig],
    as_json: bool = typer.Option(False, "--json", help="Everything as one JSON object."),
) -> None:
    """Say what pretrain would read, how long it would train, and whether that is worth it.

    Nothing is written, and nothing leaves. Exit status 2 where pretrain would refuse.
    """
    config = chosen.settings
    with (
        ends_on_ctrl_c("nothing was written"),
        shown_progress(Console(stderr=True, soft_wrap=True, markup=False), lines=4) as observe,
    ):
        start = read_start(config.training)
        found = look(
            config.data,
            size=config.training.image_size,
            channels=start.start.input.channels if start else None,
            on_read=lambda done, of: observe("read", done, of),
        )
        foreseen = _foresee(found, config)
    refusals = list(_refusals(found, foreseen))
    if as_json:
        typer.echo(json.dumps(_as_dict(found, foreseen, config, refusals)))
    else:
        _show(found, foreseen, config)
    if refusals:
        raise DataError(refusals[0])


def _foresee(found: Look, config: ClientConfig) -> Foresight | FedFreeError:
    """What training would be, or why there is none."""
    if found.refusal:
        return DataError(found.refusal)
    try:
        return foresee(found, config)
    except FedFreeError as error:
        return error


def _refusals(found: Look, foreseen: Foresight | FedFreeError) -> Iterator[str]:
    """Why pretrain would end with an error, each with what to do."""
    if found.unreadable:
        count = len(found.unreadable)
        yield (
            f"pretrain refuses a set with images that cannot be read: {count} here, "
            f"{found.unreadable[0].name} first; replace {'it' if count == 1 else 'them'}, or take "
            f"{'it' if count == 1 else 'them'} out"
        )
    if isinstance(foreseen, FedFreeError):
        yield str(foreseen)
    elif foreseen.disk > foreseen.disk_free:
        yield (
            f"the pixels take {_bytes(foreseen.disk)} on disk, and {_bytes(foreseen.disk_free)} are free: "
            "make room, or take fewer or smaller images"
        )


def _show(found: Look, foreseen: Foresight | FedFreeError, config: ClientConfig) -> None:
    console = Console(highlight=False, markup=False)
    title = f"{found.images} images of {len(found.classes)} classes in {config.data.source}"
    console.print(Text(readable(title)), soft_wrap=True)
    console.print(_class_table(found))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, line in _facts(found, foreseen, config):
        facts.add_row(Text(name), Text(line))
    console.print(facts)


def _class_table(found: Look) -> Table:
    table = Table(caption_justify="left")
    for heading in ("class", "images", "smallest", "median", "largest", "grey", "turned", "broken"):
        table.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    for each in found.classes[:SHOWN_CLASSES]:
        table.add_row(*map(Text, _row(each)))
    if (more := len(found.classes) - SHOWN_CLASSES) > 0:
        table.caption = f"and {more} more classes, in --json"
    return table


def _row(of_class: ClassFound) -> Iterator[str]:
    yield from (readable(of_class.name), str(of_class.images))
    for sides in (of_class.smallest, of_class.median, of_class.largest):
        yield f"{sides[0]}×{sides[1]}" if sides else ""
    for count in (of_class.grey, of_class.turned, of_class.unreadable):
        yield str(count or "")


def _facts(
    found: Look, foreseen: Foresight | FedFreeError, config: ClientConfig
) -> Iterator[tuple[str, str]]:
    yield "training sees", _form(found, config)
    for each in found.unreadable[:SHOWN]:
        yield "cannot be read", f"{each.name} ({each.reason})"
    if (more := len(found.unreadable) - SHOWN) > 0:
        yield "", f"and {more} more"
    if found.passed_over:
        yield "passed over", str(found.passed_over).removeprefix("passed over ")
    if found.has_heic:
        yield "HEIC", HOW_TO_CONVERT
    for line in _copies(found):
        yield "the same twice", line
    if isinstance(foreseen, FedFreeError):
        yield "worth it?", "pretrain would refuse this as it is: see below"
        return
    yield "pretrain says", foreseen.plan
    yield (
        "time",
        f"about {_time(foreseen.seconds)} on this machine, estimated from a few steps on noise, beside what "
        "else runs here now",
    )
    yield "memory", _memory(foreseen)
    yield from _advice(found, foreseen, config)


def _form(found: Look, config: ClientConfig) -> str:
    colours = "colour" if found.channels == 3 else "grey"
    parts = [f"{found.size}×{found.size} pixels, {colours}"]
    if found.not_square:
        parts.append(f"not square, {NOT_SQUARE[config.data.fit]} (--fit): {found.not_square}")
    if found.turned:
        parts.append(f"turned upright, as their EXIF tag says: {found.turned}")
    if found.small:
        parts.append(f"smaller than that, and enlarged: {found.small}")
    if found.channels == 1 and found.grey < found.images:
        parts.append(
            f"the first image, {found.first}, is grey, and it decides: the colours of "
            f"{found.images - found.grey} others are lost; take it out, or begin from a start in colour"
        )
    return "; ".join(parts)


def _copies(found: Look) -> Iterator[str]:
    contradicting = [each for each in found.copies if each.contradict]
    within = [each for each in found.copies if not each.contradict]
    if contradicting:
        yield (
            f"WARNING: {_times(len(contradicting))} in different classes, so that their labels contradict "
            f"each other: {_examples(contradicting)}"
        )
    if within:
        yield f"{_times(len(within))} in one class, which teaches nothing new and flatters the accuracy: " + (
            _examples(within)
        )


def _times(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


def _examples(copies: Iterable[Copies]) -> str:
    named = [" = ".join(each.names[:SHOWN]) + (" = …" if len(each.names) > SHOWN else "") for each in copies]
    return "; ".join(named[:SHOWN]) + ("; …" if len(named) > SHOWN else "")


def _memory(foreseen: Foresight) -> str:
    line = f"about {_bytes(foreseen.memory)}, estimated likewise"
    if not foreseen.disk:
        return line
    return (
        f"{line}, and {_bytes(foreseen.disk)} on disk for the pixels ({_bytes(foreseen.disk_free)} are free)"
    )


def _advice(found: Look, foreseen: Foresight, config: ClientConfig) -> Iterator[tuple[str, str]]:
    """What it is about, and what to say about it."""
    few = [each for each in found.classes if each.images < FEWEST_MEASURED]
    if found.unreadable:
        yield "worth it?", "not yet: pretrain refuses a set with images that cannot be read"
    elif not few:
        yield (
            "worth it?",
            f"yes: every class has {FEWEST_MEASURED} images or more, as in the federations that "
            "docs/results.md measures",
        )
    if few:
        yield (
            "" if found.unreadable else "worth it?",
            f"perhaps: {len(few)} of {len(found.classes)} classes have fewer than {FEWEST_MEASURED} images, "
            "and no federation with so few was measured (docs/results.md); add images if you can",
        )
    if config.training.start is None:
        yield (
            "start",
            "training would begin from random weights; from a start (--start) few images are worth more",
        )
    if foreseen.held_out:
        yield (
            "accuracy",
            f"pretrain will measure it on {_times(foreseen.held_out)}: one image is "
            f"{100 / foreseen.held_out:.2g} points",
        )


def _time(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _as_dict(
    found: Look, foreseen: Foresight | FedFreeError, config: ClientConfig, refusals: list[str]
) -> dict[str, Any]:
    """The same for programs, whole; names as they are."""
    return {
        "source": str(config.data.source),
        "images": found.images,
        "image_size": found.size,
        "channels": found.channels,
        "not_square": found.not_square,
        "smaller": found.small,
        "classes": [_class_dict(each) for each in found.classes],
        "unreadable": [_unreadable_dict(each) for each in found.unreadable],
        "passed_over": {
            reason.name.lower(): sorted("/".join(parts) for parts in paths)
            for reason, paths in found.passed_over.paths.items()
        },
        "copies": [{"images": each.names, "classes": each.classes} for each in found.copies],
        "training": None if isinstance(foreseen, FedFreeError) else _training_dict(foreseen),
        "advice": []
        if isinstance(foreseen, FedFreeError)
        else [line for _, line in _advice(found, foreseen, config)],
        "trainable": not refusals,
        "refusals": refusals,
    }


def _class_dict(of_class: ClassFound) -> dict[str, Any]:
    names = ("name", "images", "smallest", "median", "largest", "grey", "turned", "unreadable")
    return {name: getattr(of_class, name) for name in names}


def _unreadable_dict(image: Unreadable) -> dict[str, str]:
    return {"image": image.name, "class": image.label, "reason": image.reason}


def _training_dict(foreseen: Foresight) -> dict[str, Any]:
    return {
        "plan": foreseen.plan,
        "steps": foreseen.steps,
        "held_out": foreseen.held_out,
        "estimated_seconds": round(foreseen.seconds, 1),
        "estimated_memory_bytes": foreseen.memory,
        "disk_bytes": foreseen.disk,
        "disk_free_bytes": foreseen.disk_free,
    }
