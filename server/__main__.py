"""``fedfree-server``, also as ``python -m server``."""

from fedfree.host.roles import run_role


def main() -> None:
    """Console script."""
    run_role("fedfree-server", extra="server", commands="server.commands.main")


if __name__ == "__main__":
    main()
