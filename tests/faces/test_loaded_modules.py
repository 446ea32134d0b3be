"""What opening a cache imports is no more than what `loaded_modules.txt` says.

Importing takes most of the time of a short program. ABIs, components, preparations, batches, logs
of values, profiles and policies are imported when something first needs them: in `register`, or in
a thread, and never in a lease's first call. `python tests/faces/test_loaded_modules.py` writes the
file anew; it should only become shorter.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOADED = Path(__file__).parent / "loaded_modules.txt"
PROGRAM = """
import sys, trio, trio_wasmcache

def told():
    names = {name for name in sys.modules if name.partition(".")[0] == "trio_wasmcache"}
    print(*sorted(names))

class Silent:
    def info(self, event, **fields): pass
    warning = info

async def main():
    async with trio_wasmcache.open_cache(logger=Silent()) as cache:
        told()
        same = '(module (func (export "same") (param i64) (result i64) (local.get 0)))'
        await cache.register("same", same, args=("i64",), returns="i64")
        told()
        async with cache.acquire("same") as lease:
            await lease.call(1)
        told()

told()
trio.run(main)
"""


def loaded() -> list[set[str]]:
    """Our modules that are there after importing, opening, `register`, and a lease with a call."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_modules_are_imported_when_they_are_needed() -> None:
    """`register` of a plain function, and its first call, import nothing more than opening."""
    imported, opened, registered, called = loaded()
    assert imported == {"trio_wasmcache"}
    assert registered - opened == set()
    assert called - registered == set()
    assert opened - set(LOADED.read_text().split()) == set()


def main() -> None:
    LOADED.write_text("".join(f"{name}\n" for name in sorted(loaded()[1])))


if __name__ == "__main__":
    main()
