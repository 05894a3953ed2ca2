"""``fedfree-sim``, also as ``python -m simulations``."""

from fedfree.host.roles import run_role


def main() -> None:
    """Console script."""
    run_role("fedfree-sim", extra="simulation", commands="simulations.commands.main")


if __name__ == "__main__":
    main()
