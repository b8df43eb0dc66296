"""Requests that tests make often."""

from functools import partial

from caplet.jobs.quantize.settings import QuantizeSettings

as_measured = partial(QuantizeSettings, accept="measured", method="qcapsnets")
"""Settings of a plain search whose plan is accepted by the images that it saw: a few dozen are enough."""
