"""Reads and writes the bytes of modules. Pure."""
