"""Fixed-point numbers and the integer functions of capsule networks; numpy only, torch tensors welcome."""

from caplet.fixed.format import AnyFormat, ChannelFormat, FixedFormat, LogFormat, PlanFormat, format_from_json
from caplet.fixed.rounding import Rounding, carried_shift, rounding_shift, stochastic_noise
from caplet.fixed.softmax import softmax
from caplet.fixed.squash import squash

__all__ = [
    "AnyFormat",
    "ChannelFormat",
    "FixedFormat",
    "LogFormat",
    "PlanFormat",
    "Rounding",
    "carried_shift",
    "format_from_json",
    "rounding_shift",
    "softmax",
    "squash",
    "stochastic_noise",
]
