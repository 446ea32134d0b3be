"""What users hold: the cache, its groups and leases."""
