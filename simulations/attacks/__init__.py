"""Audits: what contributed models, their synthetic images and the broadcast meta-learner give away; and hostile contributions."""
