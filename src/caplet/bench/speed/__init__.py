"""Speed: everything that runs a model, measured in turns within one call."""
