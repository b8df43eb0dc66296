"""Capsule networks built from :mod:`caplet.nn` layers, their registry, native checkpoints and importers."""
