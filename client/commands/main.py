"""``fedfree-client``: what one organisation does on its own machine."""

from client.commands import adapting, contributing, deploying, rehearsing, remote
from fedfree.host.cli import make_app, run_app

app = make_app(
    "fedfree-client",
    "Contribute a classifier of your own images, see exactly what would be sent, measure and use what "
    "comes back.",
)
for commands in (contributing, rehearsing, remote, deploying, adapting):
    app.add_typer(commands.app)


def main() -> None:
    """Console script."""
    run_app(app)
