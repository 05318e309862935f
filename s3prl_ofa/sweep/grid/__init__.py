"""Grid files: what they may hold (schema), how they are read (parsing), whether they can be run (validation)."""
