"""Whole jobs, from files to a run folder: what a sub-command does. Each is a function of its settings."""
