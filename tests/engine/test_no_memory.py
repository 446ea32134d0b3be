"""A system without more addresses: idle instances go, or the host is blamed, not the guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.no_memory import CASES
from engine.support import run_python


@pytest.mark.parametrize("case", CASES)
def test_what_the_system_refuses_is_made_room_for(case: str) -> None:
    """With something idle it works; without, it is a `CodeMemoryError`, and the cache goes on."""
    script = "import sys, trio; from engine.no_memory import main; trio.run(main, sys.argv[1])"
    assert run_python(script, case) == "done\n"


def test_many_mappings_are_not_too_many(tmp_path: Path) -> None:
    """Idle instances go before the kernel refuses a mapping, to anyone in the process."""
    script = """
        import sys, trio
        from engine.no_memory import many_mappings
        trio.run(many_mappings, sys.argv[1])
    """
    assert run_python(script, str(tmp_path)) == "done\n"
