"""Counters and statistics. Pure."""
