"""Weights, biases and exponents chosen so that each quantized block gives what the float block gives."""
