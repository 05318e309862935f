"""Grid files: what they may hold and how they are read (schema), and the points they describe (jobs)."""
