"""Structured pruning: what dependencies with what, importance scores, surgery, schedules, accounting."""
