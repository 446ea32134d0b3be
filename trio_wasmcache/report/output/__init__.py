"""Results as plain values, on a terminal and as pages."""
