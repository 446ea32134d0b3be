"""A log run through the cache's own policy, and compared."""
