"""From files to events in order, and what was wrong with them."""
