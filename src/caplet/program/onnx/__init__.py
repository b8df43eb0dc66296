"""A Program as an ONNX graph that computes the same integers. Needs the package onnx, imported on first use."""
