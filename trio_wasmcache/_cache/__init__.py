"""The objects that users hold: the cache, its groups, leases and functions."""
