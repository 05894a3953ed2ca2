"""Attacks on one's own kind of model, before one is contributed."""
