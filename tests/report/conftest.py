"""How hard Hypothesis tries: `HYPOTHESIS_PROFILE` is "ci" (the default) or "nightly"."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=100, stateful_step_count=50, deadline=None)
settings.register_profile("nightly", max_examples=1000, stateful_step_count=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
