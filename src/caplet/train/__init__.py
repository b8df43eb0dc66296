"""Training: margin and reconstruction loss, initialisation, recipes, and the seeded, resumable loop."""
