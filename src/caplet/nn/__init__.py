"""Capsule layers in PyTorch, each written once; every tensor the device stores passes a named point."""
