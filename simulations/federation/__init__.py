"""One simulated federation: data sets, who holds which classes, its run directory, and the engines."""
