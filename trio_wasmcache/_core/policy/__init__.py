"""The state machine that decides which request is served or waits, and what is evicted. Pure."""
