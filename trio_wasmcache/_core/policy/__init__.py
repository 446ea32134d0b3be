"""The state machine that decides who is served, who waits and who goes. Pure."""
