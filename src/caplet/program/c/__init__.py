"""C99 from a Program: descriptors, the emitter, and the runtime's sources."""
