"""Is a sample a copy: ratios, verdicts, statistics."""
