"""How the hit rate depends on sizes and times, and what to set them to."""
