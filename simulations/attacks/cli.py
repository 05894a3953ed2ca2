"""``fedfree-sim privacy``: what the models of a simulated organisation give away."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.audit_report import plain_table, print_audit, shown_progress, write_audit
from fedfree.cli import make_app
from simulations.attacks.audit import audit_organisation, draw_pictures
from simulations.attacks.config import AuditConfig
from simulations.attacks.memorisation import LABEL, Nearness

app = make_app("privacy", "Attack models, students and meta-learners as somebody who receives them could.")

_DEFAULTS = AuditConfig()


@app.command()
def audit(
    out: Annotated[Path, typer.Option(help="Folder for everything the audit leaves.")] = Path("runs/audit"),
    dataset: Annotated[
        str, typer.Option(help="glyphs, omniglot, cifar-fs, or the path of an image folder or zip.")
    ] = _DEFAULTS.dataset,
    classes: Annotated[int, typer.Option(help="Of the organisation.")] = _DEFAULTS.classes,
    images_per_class: Annotated[int, typer.Option(help="At most.")] = _DEFAULTS.images_per_class,
    shadows: Annotated[
        int, typer.Option(help="Models, each trained on a half of the images.")
    ] = _DEFAULTS.shadows,
    meta_learner: Annotated[
        int, typer.Option(help="Run a small federation with so many of them, to attack its meta-learner.")
    ] = _DEFAULTS.meta_learner,
    architecture: Annotated[str, typer.Option(help="e.g. conv4, conv4-64-group, resnet10.")] = "conv4",
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = _DEFAULTS.image_size,
    epochs: Annotated[int, typer.Option(help="Of each model's training.")] = _DEFAULTS.epochs,
    min_steps: Annotated[
        int, typer.Option(help="Of each model's training, however few its images.")
    ] = _DEFAULTS.min_steps,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = _DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = _DEFAULTS.seed,
    cache: Annotated[Path, typer.Option(help="Folder for data sets.")] = _DEFAULTS.cache,
) -> None:
    """Train, invert and distil one organisation's models, and attack what comes out of each step.

    Started again on the same folder, it continues: models, students and federations are kept.
    """
    values = {name: value for name, value in locals().items() if name != "out"}
    config = AuditConfig.parse(values, origin="option")
    console = Console()
    with shown_progress(console) as observe:
        found = audit_organisation(out, config, observe=observe)
    pictures = draw_pictures(found, out)
    memorisation = {
        "label": LABEL,
        "synthetic_images": len(found.synthetic),
        "measures": {name: asdict(each) for name, each in found.nearness.items()},
    }
    write_audit(
        out / "audit.json",
        found.plan,
        found.findings,
        memorisation=memorisation,
        downstream=downstream_words(config),
        config=config.model_dump(mode="json"),
        seconds=observe.seconds,
    )
    print_audit(console, found.plan, found.findings)
    for line in downstream_words(config):
        console.print(line, highlight=False)
    console.print(nearness_table(found.nearness))
    console.print("; ".join(f"{what}: {seconds:.0f} s" for what, seconds in observe.seconds.items()))
    written = ", ".join(str(path) for path in (out / "audit.json", *pictures))
    console.print(f"wrote {written}", highlight=False, soft_wrap=True)


def downstream_words(config: AuditConfig) -> list[str]:
    """How small the server was whose products were attacked."""
    student = config.student_server()
    images = student.iterations * student.invert.images_per_model
    words = [
        f"Students: each learned in {config.student_steps} steps from {images:,} synthetic images of one "
        "model; a server that works longer may come closer to the model, and leak more of it."
    ]
    if config.meta_learner:
        words.append(
            f"Meta-learners: of {config.meta_learner} federations of {1 + config.companions} organisations "
            f"and {config.meta_learner_iterations} server iterations, with the same companions each time."
        )
    return words


def nearness_table(nearness: dict[str, Nearness]) -> Table:
    """The memorisation check, under its label."""
    table = plain_table(
        f"{LABEL}; nearest private against nearest held-out image: without copies about 0.50 are closer to "
        "the private one, and ratios of the distances are near 1"
    )
    table.add_column("synthetic images, distance by")
    for name in ("closer to private", "median ratio", "lowest ratio"):
        table.add_column(name, justify="right")
    for name, each in nearness.items():
        numbers = (each.closer_to_private, each.median_ratio, each.lowest_ratio)
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    return table
