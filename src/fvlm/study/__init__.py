"""A study as a whole: its plan, its preflight checks, its status."""
