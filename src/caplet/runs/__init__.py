"""What is on disk: run folders, stages of a run, records."""
