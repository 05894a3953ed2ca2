"""From private images to a contribution: training, differential privacy, ledger, statement, cache."""
