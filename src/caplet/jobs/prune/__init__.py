"""``caplet prune`` and ``caplet prune-backbone``."""
