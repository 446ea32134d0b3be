"""Codecs for values of CQL types."""
