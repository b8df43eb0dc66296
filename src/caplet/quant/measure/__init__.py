"""How good a plan is: evaluation, early decisions, effects of single points, and the log of what was measured."""
