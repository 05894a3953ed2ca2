"""The command line ``fedfree-sim``, by verb; ``main.py`` puts it together."""
