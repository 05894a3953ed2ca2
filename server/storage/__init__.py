"""What a run keeps on disk: contributions, checkpoints, events, and the meta-learner it publishes."""
