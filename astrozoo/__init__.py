"""astrozoo."""
