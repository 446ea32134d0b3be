"""All guests of the zoo."""

from __future__ import annotations

from . import bombs, calls, features, hosts, importers, liars, names, scripts, speakers

THEMES = (calls, bombs, features, liars, scripts, names, hosts, importers, speakers)
ZOO = [guest for theme in THEMES for guest in theme.GUESTS]
