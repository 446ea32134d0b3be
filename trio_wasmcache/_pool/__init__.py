"""Who has which instance, and how it comes and goes."""
