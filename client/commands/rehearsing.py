"""``rehearse``: attack models trained as one's own would be, before one is contributed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client.audit_report import print_audit, shown_progress, write_audit
from client.commands.options import ArchitectureName, Data, Epochs, Flip, ImageSize, Seed, Split
from client.config import ClientConfig
from client.rehearse import rehearse as run_rehearsal
from fedfree.architectures import Architecture

app = typer.Typer()


@app.command()
def rehearse(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the shadows and rehearsal.json.")] = Path("rehearsal"),
    shadows: Annotated[int, typer.Option(help="Models to train, each on a half of the images.")] = 16,
    split: Split = None,
    architecture: ArchitectureName = "conv4",
    image_size: ImageSize = 32,
    horizontal_flip: Flip = None,
    epochs: Epochs = 12,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    seed: Seed = 0,
) -> None:
    """Attack models trained as yours would be, before you contribute one. Nothing is sent."""
    values: dict[str, Any] = {
        "data": {"source": data, "split": split},
        "pretrain": {
            "architecture": Architecture.parse(architecture),
            "image_size": image_size,
            "horizontal_flip": horizontal_flip,
            "epochs": epochs,
            "threads": threads,
        },
        "cache": out / "shadows",
        "seed": seed,
    }
    console = Console(soft_wrap=True)
    with shown_progress(console) as observe:
        plan, finding = run_rehearsal(
            ClientConfig.parse(values, origin="option"), shadows=shadows, observe=observe
        )
    write_audit(out / "rehearsal.json", plan, [finding])
    print_audit(Console(), plan, [finding])
    console.print(f"wrote {out / 'rehearsal.json'}", highlight=False)
