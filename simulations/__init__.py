"""Whole federations on one machine, their data, baselines and reports. Nothing imports this package."""
