"""Requests that tests make often."""

from functools import partial

from caplet.jobs.quantize.settings import QuantizeSettings

as_measured = partial(QuantizeSettings, accept="measured")
"""Settings of a run whose plan is accepted by the images of its search: a few dozen are enough."""
