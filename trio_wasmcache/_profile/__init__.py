"""What `InstanceCache.profile` returns, and its page."""
