"""The same requests under other limits."""
