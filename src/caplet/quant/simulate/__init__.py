"""The model under a plan: fake quantization, straight-through gradients, learned scales."""
