"""Components with a language in them: Python's and JavaScript's, built by their tools.

For the night: building takes a minute, and compiling another one for each of them. `TOOLCHAINS`
names folders with the tools, as for the cookbook: a virtual environment with componentize-py, and a
folder with npm's @bytecodealliance/componentize-js.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from components.samples import CALLS, FOLDER
from components.shapes import same
from components.test_differential import NIGHTLY, call
from cookbook.toolchains import elsewhere, path
from engine.support import quiet_cache

from trio_wasmcache import InstanceCache, MiB, Wasi
from trio_wasmcache.testing import check_invariants

LIMITS: dict[str, Any] = {
    "max_wasm_size": 32 * MiB,
    "memory_limit": 128 * MiB,
    "max_instance_size": 128 * MiB,
    "max_size": 512 * MiB,
    "max_code_size": 512 * MiB,
    "table_limit": 100_000,
    "total_fuel": 10**10,
}
FILES = ("app.py", "funcs.js", "build.mjs", "funcs.wit")


def run(folder: Path, *command: str) -> None:
    """Run a tool in a folder."""
    found = shutil.which(command[0], path=path())
    if found is None:
        pytest.skip(f"there is no {command[0]}")
    environment = {**os.environ, "PATH": path()}
    done = subprocess.run([found, *command[1:]], cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def build_python(folder: Path, *options: str) -> Path:
    """CPython, linked dynamically, with and without WASI."""
    world = ("-d", "funcs.wit", "-w", "pure")
    run(folder, "componentize-py", *world, "componentize", *options, "app", "-o", "funcs.wasm")
    return folder / "funcs.wasm"


def build_javascript(folder: Path) -> Path:
    """SpiderMonkey."""
    modules = [one / "node_modules" for one in elsewhere()]
    package = "@bytecodealliance/componentize-js"
    found = next((one for one in modules if (one / package).is_dir()), None)
    if found is None:
        pytest.skip(f"there is no {package}")
    (folder / "node_modules").symlink_to(found.resolve())
    run(folder, "node", "build.mjs", str(folder))
    return folder / "funcs-js.wasm"


LANGUAGES = {
    "python": build_python,
    "python without wasi": lambda folder: build_python(folder, "--stub-wasi"),
    "javascript": build_javascript,
}


@pytest.fixture(scope="module", params=LANGUAGES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The component of a language."""
    if not NIGHTLY:
        pytest.skip("building and compiling it takes minutes")
    folder = tmp_path_factory.mktemp("built")
    for name in FILES:
        shutil.copy(FOLDER / name, folder)
    return LANGUAGES[request.param](folder)


@pytest.fixture
async def cache(built: Path) -> AsyncIterator[InstanceCache]:
    """A cache that keeps compiled code beside the component."""
    async with quiet_cache(cache_dir=built.parent / "cache", **LIMITS) as cache:
        yield cache
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_all_functions(built: Path, cache: InstanceCache, isolation: Any) -> None:
    """They do as those of Rust, twice each, and in each isolation."""
    wasi = Wasi(random=1, clock=0)
    made = await cache.register_component(built, isolation=isolation, wasi=wasi)
    functions = {one.name: one for one in made}
    assert {one.isolation for one in made} == {isolation}
    for one in CALLS:
        for _ in range(2):
            given = await call(functions[one.name], one.params, one.result, *one.values)
            assert same(given, one.gives), one


async def test_a_batch(built: Path, cache: InstanceCache) -> None:
    """Each row is a call."""
    upper = await cache.register("upper", built)
    async with upper.acquire() as lease:
        assert await lease.map([["a", "é", ""]]) == ["A", "É", ""]


async def test_a_call_is_cancelled(built: Path, cache: InstanceCache) -> None:
    """Between any two of its slices; the function works afterwards."""
    spin = await cache.register("spin", built)
    for checkpoints in (1, 5, 50):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel(scope: trio.CancelScope = scope, left: int = checkpoints) -> None:
                    for _ in range(left):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel)
                await spin.call(2**62)
        assert scope.cancelled_caught
        assert await spin.call(3) == 3
