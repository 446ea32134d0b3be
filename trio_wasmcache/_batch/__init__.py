"""Batches: one function called for every row of some columns.

A batch knows the `Call` of `_runtime`, engines and ABIs, and nothing of leases or the pool.
"""
