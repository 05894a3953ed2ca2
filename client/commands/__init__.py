"""The commands of ``fedfree-client``, by what they are for; ``client/cli.py`` puts them together."""
