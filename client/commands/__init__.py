"""The command line ``fedfree-client``, by what it is for; ``main.py`` puts it together."""
