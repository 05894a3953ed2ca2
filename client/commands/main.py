"""``fedfree-client``: what one organisation does on its own machine."""

from client.commands import adapting, contributing, deploying, looking, rehearsing, remote, starting
from fedfree.host.cli import App, run_app

app = App(
    "fedfree-client",
    "Contribute a classifier of your own images, see exactly what would be sent, measure and use what "
    "comes back.",
    is_program=True,
)
for commands in (looking, starting, contributing, rehearsing, remote, deploying, adapting):
    app.add_typer(commands.app)


def main() -> None:
    """Console script."""
    run_app(app)
