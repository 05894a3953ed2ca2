"""The command line ``fedfree-server``, by verb; ``main.py`` puts it together."""
