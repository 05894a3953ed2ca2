"""What a meta-learner is compared with, one function each, and the episodes on which all are compared."""
