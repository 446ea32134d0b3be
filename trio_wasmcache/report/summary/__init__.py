"""Sums over a log, block by block, in bounded memory."""
