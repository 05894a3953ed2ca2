"""Audits of what models, their synthetic images and the meta-learner give away; and hostile contributions."""
