"""Fixed-point numbers and the integer functions of capsule networks; numpy only, torch tensors welcome."""

from caplet.fixed.format import AnyFormat, FixedFormat, LogFormat, format_from_json
from caplet.fixed.packing import pack_bits, packed_size, unpack_bits
from caplet.fixed.rounding import Rounding, fnv1a32, noise_keys, rounding_shift, stochastic_noise

__all__ = [
    "AnyFormat",
    "FixedFormat",
    "LogFormat",
    "Rounding",
    "fnv1a32",
    "format_from_json",
    "noise_keys",
    "pack_bits",
    "packed_size",
    "rounding_shift",
    "stochastic_noise",
    "unpack_bits",
]
