"""Which of the tasks that are ready at once Trio runs first: it draws lots, and a seed says how.

In the profile "ci" each test has a seed of its own, the same in each run: a test that depends on
the order fails each time, or never, and can be looked into. At night there is another each time.
"""

from __future__ import annotations

import os
import random

from trio._core import _run

VARIABLE = "TRIO_SEED"


def choose_seed(*, nightly: bool) -> str:
    """Choose the seed of a run of the tests, also for the processes it starts, and return it."""
    chosen = str(random.SystemRandom().randrange(10**6)) if nightly else "0"
    return os.environ.setdefault(VARIABLE, chosen)


def begin_test(name: str) -> None:
    """Have the lots of a test depend on its name and on the run's seed."""
    _run._r.seed(f"{os.environ[VARIABLE]} {name}")
