"""``fedfree-client``, also as ``python -m client``."""

from fedfree.host.roles import run_role


def main() -> None:
    """Console script."""
    run_role("fedfree-client", extra="client", commands="client.commands.main")


if __name__ == "__main__":
    main()
