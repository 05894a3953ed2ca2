"""MERGE, INVERT, META-LEARN: from a pool of models to a meta-learner, knowing neither transport nor disk."""
