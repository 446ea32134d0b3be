"""How guest code runs: what the host does for it, and what that costs."""
