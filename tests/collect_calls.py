"""A plugin of pytest that logs all failing calls of the tests it runs with, to be run again.

``pytest -p collect_calls tests/hostile ...`` with `COLLECT_CALLS` set to a folder: every cache on
wasmtime that a test opens has ``log_values=0.0``, and the folder gets the calls and the modules.
Tests that compare a whole log fail then; that does not matter here. ``python -m collect_calls``
runs the calls again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from trio_wasmcache._core.events import Replayable, Stamped
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._pool import pool, registration

ENOUGH = 1000
"""Calls that are to have the same end."""
FOLDER = Path(os.environ.get("COLLECT_CALLS", "."))


@pytest.fixture(autouse=True, scope="session")
def collected() -> Iterator[None]:
    """Have all caches log their failing calls, and keep these and the modules."""
    made, admit, numbers = pool.Pool.__init__, registration.check_core, [0]
    (FOLDER / "modules").mkdir(parents=True, exist_ok=True)
    with (
        (FOLDER / f"calls-{os.getpid()}.jsonl").open("w") as file,
        pytest.MonkeyPatch.context() as patch,
    ):

        def keep(what: str, wasm: bytes, limit: int) -> bytes:
            path = FOLDER / "modules" / hashlib.sha256(wasm).hexdigest()
            if not path.exists():
                path.write_bytes(wasm)
            return admit(what, wasm, limit)

        def begin(self: Any, config: Any, engine: Any, log: Any, recorder: Any = None) -> None:
            if isinstance(engine, WasmtimeEngine):
                config = evolve(config, log_values=config.log_values or 0.0)
            made(self, config, engine, log, recorder)
            add = log.add_values

            def add_values(event: Replayable, at: float, origin: Any = None) -> bool:
                numbers[0] += 1
                stamped = Stamped(event, f"collected {os.getpid()}", numbers[0], at)
                file.write(json.dumps({"event": event.name, **stamped.fields()}) + "\n")
                return bool(add(event, at, origin))

            log.add_values = add_values

        patch.setattr(registration, "check_core", keep)
        patch.setattr(pool.Pool, "__init__", begin)
        yield


def main() -> int:
    """Run the calls again; return 1 if a pristine one ends otherwise, or if they are too few."""
    from trio_wasmcache._again import Others, Ran, Wanted, find_calls, read_modules, run_all
    from trio_wasmcache.report.cli.session import Session

    session = Session([str(path) for path in sorted(FOLDER.glob("calls-*.jsonl"))])
    calls = [Ran(*found) for found in find_calls(session, Wanted(), Others())]
    modules = read_modules([str(path) for path in (FOLDER / "modules").iterdir()])
    trio.run(run_all, calls, modules)
    wrong = [ran for ran in calls if ran.event.pristine and ran.verdict == "different"]
    for ran in wrong:
        print(ran.event.function, ran.event.error, ran.differences)
    counts = Counter((ran.verdict, "pristine" if ran.event.pristine else "used") for ran in calls)
    reasons = Counter(str(ran.refused)[:60] for ran in calls if ran.refused)
    print(dict(counts), dict(reasons))
    return int(bool(wrong) or counts["same", "pristine"] < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
