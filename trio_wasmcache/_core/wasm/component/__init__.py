"""Reads components: which core modules they consist of, and how these are linked. Pure."""
