"""When wasmtime gets no memory or no stack: an error each time, and the next call works."""

from __future__ import annotations

import json

import pytest
from engine.support import run_python

# {kind: (how many a run takes at least, the errors there may be)}
KINDS = {
    # Of instances and of a driver.
    "memory": (9, ("LoadError",)),
    # A guest is told -1, and goes on; where the host grows for it, the call fails.
    "growth": (6, ("all answers", "MemoryLimitError")),
    # One for each store, which uses it for all calls.
    "stack": (4, ("LoadError",)),
}


@pytest.mark.parametrize("modules", ["one", "linked"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_nth_is_refused(kind: str, modules: str) -> None:
    """For every n: no abort, the books balance, all is freed, and what is asked for again comes."""
    script = "import sys, trio, engine.faults\ntrio.run(engine.faults.main, *sys.argv[1:])"
    lines = [json.loads(line) for line in run_python(script, kind, modules).splitlines()]
    least, allowed = KINDS[kind]
    if (kind, modules) == ("memory", "linked"):
        least += 3  # the part's own, of each instance
    assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= least
    found = {came.partition(":")[0] for _, came in lines}
    assert found == set(allowed)
    for _, came in lines:
        assert "start function" not in came
        words = "raise memory_limit" if kind == "growth" else f"no {kind} for you"
        assert came == "all answers" or words in came
