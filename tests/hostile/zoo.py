"""All guests of the zoo."""

from __future__ import annotations

from . import bombs, calls, features, hosts, liars, names, speakers

THEMES = (calls, bombs, features, liars, names, hosts, speakers)
ZOO = [guest for theme in THEMES for guest in theme.GUESTS]
