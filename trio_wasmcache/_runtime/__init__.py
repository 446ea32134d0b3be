"""Running guest code: calls, their slices, host functions, and what they cost."""
