"""``fedfree-sim privacy``: what the models of a simulated organisation give away."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.commands.progress import shown_progress
from client.rehearsing.report import plain_table, print_audit, privacy_words, write_audit
from fedfree.host.cli import make_app
from simulations.attacks import sweep_table
from simulations.attacks.audit import audit_organisation, draw_pictures
from simulations.attacks.config import AuditConfig
from simulations.attacks.memorisation import LABEL, Nearness
from simulations.attacks.sweep import (
    SMALL,
    Level,
    audit_federations,
    read_base,
    read_epsilons,
    run_federations,
)
from simulations.attacks.sweep_plots import plots
from simulations.commands.options import (
    Cache,
    Config,
    Dataset,
    Delta,
    Device,
    Episodes,
    Threads,
    option,
)
from simulations.config import SimulationConfig
from simulations.reporting import tables as output

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
    architecture: Annotated[
        str | None,
        option("e.g. conv4, conv4-64-group, resnet10 (default: conv4; with --epsilon conv4-group)."),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = _DEFAULTS.image_size,
    epochs: Annotated[int | None, option("Of each model's training. (default: 30)")] = None,
    min_steps: Annotated[
        int, typer.Option(help="Of each model's training, however few its images.")
    ] = _DEFAULTS.min_steps,
    epsilon: Annotated[
        float, typer.Option(help="Train under differential privacy, spending at most this an image.")
    ] = math.inf,
    delta: Annotated[float, typer.Option(help="Of the differential privacy.")] = 1e-5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = _DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = _DEFAULTS.seed,
    cache: Annotated[Path, typer.Option(help="Folder for data sets.")] = _DEFAULTS.cache,
) -> None:
    """Train, invert and distil one organisation's models, and attack what comes out of each step.

    Started again on the same folder, it continues: models, students and federations are kept.
    """
    config = _audit_config({name: value for name, value in locals().items() if name != "out"})
    console = Console()
    with shown_progress(console) as observe:
        found = audit_organisation(out, config, observe=observe)
    pictures, privacy = draw_pictures(found, out), privacy_words(found.plan, config.privacy)
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
        privacy=privacy,
        config=json.loads(config.model_dump_json()),
        seconds=observe.seconds,
    )
    print_audit(console, found.plan, found.findings)
    for line in (privacy, *downstream_words(config)):
        console.print(line, highlight=False)
    console.print(nearness_table(found.nearness))
    console.print("; ".join(f"{what}: {seconds:.0f} s" for what, seconds in observe.seconds.items()))
    written = ", ".join(str(path) for path in (out / "audit.json", *pictures))
    console.print(f"wrote {written}", highlight=False, soft_wrap=True)


@app.command()
def sweep(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs and the table; continued where it exists.")
    ] = Path("runs/sweep"),
    epsilon: Annotated[
        str, typer.Option(help="Separated by commas; inf is without differential privacy.")
    ] = "1,3,8,inf",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Federations an epsilon, seeds 0, 1, …")] = 3,
    shadows: Annotated[
        int, typer.Option(help="Models to audit at each epsilon, each trained on a half of the images.")
    ] = _DEFAULTS.shadows,
    config: Config = None,
    dataset: Dataset = None,
    clients: Annotated[int | None, option("Organisations. (default: 8)")] = None,
    images_per_class: Annotated[
        int | None, option("Private images of each class, at most. (default: 60)")
    ] = None,
    architectures: Annotated[
        str | None, option("Of the models at every epsilon; the first is audited. (default: conv4-group)")
    ] = None,
    delta: Delta = None,
    iterations: Annotated[int | None, option(f"Of the server. (default: {SMALL['iterations']})")] = None,
    episodes: Episodes = None,
    device: Device = None,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Run federations at several epsilons and attack their kind of models: a table and three plots.

    Started again on the same folder, it continues: federations and models are kept.
    """
    fields = SimulationConfig.model_fields.keys() | {"delta"}
    given = {name: value for name, value in locals().items() if name in fields}
    epsilons = read_epsilons(epsilon)
    base = read_base(config, given, epsilons)
    federations = run_federations(out, base, epsilons=epsilons, seeds=range(seeds), tell=output.tell)
    with shown_progress(Console()) as observe:
        levels = audit_federations(out, federations, shadows=shadows, observe=observe)
    leave_sweep(out, levels)


def leave_sweep(out: Path, levels: Sequence[Level]) -> None:
    """Print the table, and write it with its numbers and plots."""
    table, rows = sweep_table.table(levels), sweep_table.values(levels)
    output.write_csv(out / "sweep.csv", rows)
    output.leave(
        out, "sweep", values={"rows": rows}, table=table, plots=plots(levels), written=[out / "sweep.csv"]
    )


def _audit_config(options: dict[str, Any]) -> AuditConfig:
    """What the options come to; differential privacy has its own epochs, and conv4-group by default."""
    privacy = {name: options.pop(name) for name in ("epsilon", "delta")}
    given = {name: value for name, value in options.items() if value is not None}
    if math.isfinite(privacy["epsilon"]):
        given.setdefault("architecture", "conv4-group")
        privacy |= {"epochs": given.pop("epochs")} if "epochs" in given else {}
    return AuditConfig.parse(given | {"privacy": privacy}, origin="option")


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
