"""``caplet sweep``: which small capsule network, for some images and limits."""
