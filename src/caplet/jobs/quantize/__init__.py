"""``caplet quantize``: settings, the search, acceptance, what is shipped."""
