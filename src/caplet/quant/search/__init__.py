"""Searches for a plan: each is a function of (evaluator, calibration, settings)."""
