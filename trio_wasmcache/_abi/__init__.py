"""How Python values cross into a guest and back."""
