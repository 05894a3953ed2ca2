"""``rehearse``: attack models trained as one's own would be, before one is contributed."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.commands.options import (
    ArchitectureName,
    Data,
    Delta,
    Epochs,
    Flip,
    ImageSize,
    Seed,
    Split,
    training,
)
from client.commands.progress import ends_on_ctrl_c, shown_progress
from client.config import ClientConfig
from client.rehearsing.rehearse import rehearse as run_rehearsal
from client.rehearsing.report import print_audit, privacy_words, write_audit

app = typer.Typer()


@app.command()
def rehearse(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the shadows and rehearsal.json.")] = Path("rehearsal"),
    shadows: Annotated[int, typer.Option(help="Models to train, each on a half of the images.")] = 16,
    split: Split = None,
    architecture: ArchitectureName = None,
    image_size: ImageSize = 32,
    horizontal_flip: Flip = None,
    epochs: Epochs = None,
    epsilon: Annotated[
        float, typer.Option(help="Rehearse a contribution under differential privacy, at most this an image.")
    ] = math.inf,
    delta: Delta = 1e-5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    seed: Seed = 0,
) -> None:
    """Attack models trained as yours would be, before you contribute one. Nothing is sent, or spent."""
    tables = training(
        architecture=architecture,
        image_size=image_size,
        horizontal_flip=horizontal_flip,
        epochs=epochs,
        epsilon=epsilon,
        delta=delta,
    )
    tables["training"]["threads"] = threads
    source = {"source": data, "split": split}
    values = {**tables, "data": source, "cache": out / "shadows", "seed": seed}
    config = ClientConfig.parse(values, origin="option")
    console = Console(soft_wrap=True)
    kept = f"the shadows in {out / 'shadows'} are kept, and starting again goes on with them"
    with ends_on_ctrl_c(Console(stderr=True, soft_wrap=True), kept), shown_progress(console) as observe:
        plan, finding = run_rehearsal(config, shadows=shadows, observe=observe)
    privacy = privacy_words(plan, config.privacy)
    write_audit(out / "rehearsal.json", plan, [finding], privacy=privacy)
    print_audit(Console(), plan, [finding])
    Console().print(privacy, highlight=False)
    console.print(f"wrote {out / 'rehearsal.json'}", highlight=False)
