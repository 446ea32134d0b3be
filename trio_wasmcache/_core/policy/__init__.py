"""The state machine that decides which request is served, waits, or is evicted for. Pure."""
