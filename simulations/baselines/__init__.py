"""What a meta-learner is compared with."""
