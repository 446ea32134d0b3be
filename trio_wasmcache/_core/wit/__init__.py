"""Types of the component model: as values, as WIT text, and as Python's own types."""
