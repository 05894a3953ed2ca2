"""``fedfree-sim privacy``: what the models of a simulated organisation give away."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.commands.progress import shown_progress
from client.rehearsing.rehearse import MIN_SHADOWS
from client.rehearsing.report import plain_table, print_audit, privacy_words, write_audit
from fedfree.host.cli import App
from fedfree.host.lock import alone
from fedfree.host.options import Chosen, configured
from fedfree.settings import Layer
from simulations.attacks import audit_table, sweep_table
from simulations.attacks.audit import audit_organisation, draw_pictures
from simulations.attacks.config import AuditConfig
from simulations.attacks.memorisation import LABEL, Nearness
from simulations.attacks.sweep import (
    SMALL,
    audit_federations,
    check_base,
    read_epsilons,
    run_federations,
)
from simulations.attacks.sweep_plots import plots
from simulations.command_line import flags
from simulations.config import SimulationConfig
from simulations.reporting import tables as output
from simulations.series import seconds

app = App("privacy", "Attack models, students and meta-learners as somebody who receives them could.")

AUDIT_FLAGS = {
    "dataset": "dataset",
    "start": "start",
    "classes": "classes",
    "images_per_class": "images_per_class",
    "shadows": "shadows",
    "meta_learner": "meta_learner",
    "architecture": "training.architecture",
    "image_size": "training.image_size",
    "epochs": "training.epochs",
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
    "threads": "training.threads",
    "seed": "seed",
    "cache": "cache",
}
SWEEP_FLAGS = flags(
    *("dataset", "start", "clients", "images_per_class", "architectures", "iterations", "episodes"),
    *("device", "threads", "cache"),
)


@app.command()
@configured(AuditConfig, AUDIT_FLAGS)
@alone
def audit(
    chosen: Chosen[AuditConfig],
    out: Annotated[Path, typer.Option(help="Folder for everything the audit leaves.")] = Path("runs/audit"),
) -> None:
    """Train, invert and distil one organisation's models, and attack what comes out of each step.

    Started again on the same folder, it continues: models, students and federations are kept.
    """
    config = chosen.settings
    console = Console(markup=False)
    with shown_progress(console) as observe:
        found = audit_organisation(out, config, observe=observe)
    pictures, privacy = (
        draw_pictures(found, out),
        privacy_words(found.plan, config.privacy, epochs=config.training.epochs),
    )
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
    output.leave(
        out,
        "exposure",
        table=audit_table.table(found.findings),
        setup=config.training,
        seeds=[config.seed],
        details={},
        plots={},
        config=chosen.file,
    )
    for line in (privacy, *downstream_words(config)):
        console.print(line, highlight=False)
    console.print(nearness_table(found.nearness))
    console.print("; ".join(f"{what}: {seconds:.0f} s" for what, seconds in observe.seconds.items()))
    written = ", ".join(str(path) for path in (out / "audit.json", *pictures))
    console.print(f"wrote {written}", highlight=False, soft_wrap=True)


@app.command()
@configured(SimulationConfig, SWEEP_FLAGS, under=Layer("sweep", SMALL))
@alone
def sweep(
    chosen: Chosen[SimulationConfig],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs and the table; continued where it is.")
    ] = Path("runs/sweep"),
    epsilon: Annotated[
        str, typer.Option(help="Separated by commas; inf is without differential privacy.")
    ] = "1,3,8,inf",
    seeds: Annotated[int, typer.Option(min=1, help="Federations an epsilon, seeds 0, 1, …")] = 3,
    shadows: Annotated[
        int,
        typer.Option(
            min=MIN_SHADOWS, help="Models to audit at each epsilon, each trained on a half of the images."
        ),
    ] = 16,
) -> None:
    """Run federations at several epsilons and attack their kind of models: a table and three plots.

    Started again on the same folder, it continues: federations and models are kept.
    """
    epsilons = read_epsilons(epsilon)
    check_base(chosen.settings)
    federations = run_federations(
        out, chosen.settings, epsilons=epsilons, seeds=range(seeds), tell=output.tell
    )
    with shown_progress(Console(markup=False)) as observe:
        levels = audit_federations(out, federations, shadows=shadows, observe=observe)
    rows = sweep_table.values(levels)
    output.write_csv(out / "sweep.csv", rows)
    output.leave(
        out,
        "sweep",
        table=sweep_table.table(levels),
        setup=chosen.settings.server,
        seeds=range(seeds),
        details={"rows": rows},
        plots=plots(levels),
        config=chosen.file,
        seconds=seconds(list(federations.values())) + sum(observe.seconds.values()),
        written=[out / "sweep.csv"],
    )


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
