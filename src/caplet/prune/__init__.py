"""Structured pruning: which units go together, importance scores, surgery, schedules, accounting."""
