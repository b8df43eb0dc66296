"""Structured pruning: what shrinks with what, importance scores, surgery, schedules, accounting."""
