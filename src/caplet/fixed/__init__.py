"""Fixed-point numbers and the integer functions of capsule networks; numpy only, torch tensors welcome."""

from caplet.fixed.format import AnyFormat, ChannelFormat, FixedFormat, LogFormat, PlanFormat, format_from_json
from caplet.fixed.integer import bit_length, isqrt, squared_length
from caplet.fixed.packing import pack_bits, packed_size, unpack_bits
from caplet.fixed.rounding import Rounding, fnv1a32, noise_keys, rounding_shift, stochastic_noise
from caplet.fixed.softmax import softmax, sum_bits, uniform_coupling
from caplet.fixed.squash import squash, squash_factor

__all__ = [
    "AnyFormat",
    "ChannelFormat",
    "FixedFormat",
    "LogFormat",
    "PlanFormat",
    "Rounding",
    "bit_length",
    "fnv1a32",
    "format_from_json",
    "isqrt",
    "noise_keys",
    "pack_bits",
    "packed_size",
    "rounding_shift",
    "softmax",
    "squared_length",
    "squash",
    "squash_factor",
    "stochastic_noise",
    "sum_bits",
    "uniform_coupling",
    "unpack_bits",
]
