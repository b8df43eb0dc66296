"""Compression as one job: train or load, prune, fine-tune, quantize, verify, export, report."""
