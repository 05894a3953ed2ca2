"""``rehearse``: attack models trained as one's own would be, before one is contributed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.commands.progress import ends_on_ctrl_c, shown_progress
from client.config import ClientConfig
from client.rehearsing.rehearse import MIN_SHADOWS
from client.rehearsing.rehearse import rehearse as run_rehearsal
from client.rehearsing.report import print_audit, privacy_words, write_audit
from fedfree.host.cli import App
from fedfree.host.lock import alone
from fedfree.host.options import Chosen, configured

app = App()


REHEARSE_FLAGS = {
    "data": "data.source",
    "split": "data.split",
    "start": "training.start",
    "fit": "data.fit",
    "architecture": "training.architecture",
    "image_size": "training.image_size",
    "epochs": "training.epochs",
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
    "threads": "training.threads",
    "seed": "seed",
}


@app.command()
@configured(ClientConfig, REHEARSE_FLAGS)
@alone
def rehearse(
    chosen: Chosen[ClientConfig],
    out: Annotated[Path, typer.Option(help="Folder for the shadows and rehearsal.json.")] = Path("rehearsal"),
    shadows: Annotated[
        int, typer.Option(min=MIN_SHADOWS, help="Models to train, each on a half of the images.")
    ] = 16,
) -> None:
    """Attack models trained as yours would be, before you contribute one. Nothing is sent, or spent."""
    config = chosen.settings.model_copy(update={"cache": out / "shadows"})
    console = Console(soft_wrap=True, markup=False)
    kept = f"the shadows in {out / 'shadows'} are kept, and starting again goes on with them"
    with ends_on_ctrl_c(kept), shown_progress(console, lines=10) as observe:
        plan, finding = run_rehearsal(config, shadows=shadows, observe=observe)
    privacy = privacy_words(plan, config.privacy, epochs=config.training.epochs)
    write_audit(out / "rehearsal.json", plan, [finding], privacy=privacy)
    print_audit(Console(markup=False), plan, [finding])
    Console(markup=False).print(privacy, highlight=False)
    console.print(f"wrote {out / 'rehearsal.json'}", highlight=False)
