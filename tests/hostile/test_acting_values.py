"""Values whose code runs while they are converted: it may do anything, and harms nobody."""

from __future__ import annotations

import acting
import pytest
from engine.support import run_python


@pytest.mark.parametrize("act", acting.ACTS)
def test_values_may_act_while_they_are_converted(act: str) -> None:
    """By every ABI and route: the right result or an error, sound books, and a living process."""
    script = "import sys, acting, trio; trio.run(acting.main, sys.argv[1])"
    assert run_python(script, act) == "survived\n"
