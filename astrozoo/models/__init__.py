"""Models by domain: one folder per domain, one file per family."""
