"""Batches: one function called for every row of some columns."""
