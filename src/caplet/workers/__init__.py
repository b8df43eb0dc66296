"""Independent measurements on several processes or machines, with the values that one process gives."""
