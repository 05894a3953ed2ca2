"""Whole federations on one machine, what they are measured against, and what becomes known of them."""
