"""The hit rate by sizes and times, and advice for the limits."""
