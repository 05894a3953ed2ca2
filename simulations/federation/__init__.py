"""One simulated federation: data sets, organisations, engines, and the episodes everything is compared on."""
