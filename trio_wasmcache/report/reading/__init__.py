"""Reads files, and yields events in order, with notes on what was wrong."""
