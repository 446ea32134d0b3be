"""Profiles of guests: when samples are taken, what they add up to, and how that is written."""
