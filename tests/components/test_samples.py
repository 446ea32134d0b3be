"""Components that real tools built."""

from __future__ import annotations

from components.oracle import Oracle
from components.samples import CALLS, FUNCS, PURE
from components.shapes import same


def test_the_oracle_runs_the_samples() -> None:
    """So what the samples are expected to give is what they give elsewhere, too."""
    oracle = Oracle(PURE.read_bytes())
    for call in CALLS:
        given = oracle.call(f"{FUNCS}#{call.name}", call.params, call.result, *call.values)
        assert same(given, call.gives), call
