"""Quantization in simulation: plans, calibration, fake quantization, memory accounting, evaluation, searches."""
