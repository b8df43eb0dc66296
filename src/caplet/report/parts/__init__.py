"""The parts of a page, one per file: from a run's records to a section."""
