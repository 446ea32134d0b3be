"""The same functions, built by six toolchains, give what they give under their own runtime."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine.support import quiet_cache

from trio_wasmcache import Function, GuestError, InstanceCache
from trio_wasmcache.testing import check_invariants

SPOKEN = Path(__file__).parents[1] / "udfs" / "spoken"
GOLDEN: dict[str, Any] = json.loads((SPOKEN / "golden.json").read_text())
TOOLCHAINS = ("assemblyscript", "c", "emscripten", "go", "rust", "zig")
ISOLATIONS = ("reuse", "fresh", "reset")


def module(name: str, folder: Path = SPOKEN) -> bytes:
    """The module as the toolchain wrote it; Go's is large, and kept packed."""
    if name == "go":
        return lzma.decompress((folder / "go.wasm.xz").read_bytes())
    return (folder / f"{name}.wasm").read_bytes()


async def spoken(
    cache: InstanceCache, name: str, export: str, isolation: str, folder: Path = SPOKEN
) -> Function:
    return await cache.register(
        export,
        module(name, folder),
        args=("i64",),
        returns="i64",
        isolation=isolation,
    )


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", TOOLCHAINS)
async def test_results_are_the_golden_ones(name: str, isolation: str) -> None:
    """One by one, and in a batch; and the instances are kept, within the default limits."""
    golden = GOLDEN[name]
    async with quiet_cache() as cache:
        collatz = await spoken(cache, name, "collatz", isolation)
        assert [await collatz.call(n) for n in range(1, 31)] == golden["collatz"]
        async with collatz.acquire() as lease:
            assert list(await lease.map([range(1, 31)])) == golden["collatz"]
        assert (cache.stats().misses, cache.stats().hits) == (1, 30)
        check_invariants(cache)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", TOOLCHAINS)
async def test_a_failure_says_the_guests_last_words(name: str, isolation: str) -> None:
    """A panic, an assertion that failed: what it wrote is in the error, and not in the next one."""
    golden = GOLDEN[name]
    async with quiet_cache() as cache:
        fail = await spoken(cache, name, "fail", isolation)
        assert await fail.call(0) == golden["zero"]
        for value in (7, 8):
            with pytest.raises(GuestError) as caught:
                await fail.call(value)
            # Standard output, then standard error. Go's backtrace has addresses of its own.
            said = "".join(golden[stream] for stream in ("out", "err")).replace("7", str(value))
            if golden["aborted"] is not None:  # AssemblyScript's words are the message alone
                assert golden["aborted"].replace("7", str(value)) in str(caught.value)
            if name == "go":
                said, _, _ = said.partition("goroutine")
            assert caught.value.output.startswith(said)
            assert len(caught.value.output) == len(said) or name == "go"
            assert f"the value is {value}" in str(caught.value)
        check_invariants(cache)


@pytest.fixture(params=TOOLCHAINS)
def built_anew(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A toolchain that is here, of whatever version, and the folder with what it built."""
    name: str = request.param
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["sh", str(SPOKEN / "build.sh"), str(tmp_path), name],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        pytest.skip(f"{name} IS NOT BUILT ANEW, build.sh says: {said[-1] if said else 'nothing'}")
    return name, tmp_path


async def test_what_is_built_anew_gives_the_same(built_anew: tuple[str, Path]) -> None:
    """The sources are those of the modules."""
    name, folder = built_anew
    async with quiet_cache() as cache:
        collatz = await spoken(cache, name, "collatz", "fresh", folder)
        assert [await collatz.call(n) for n in range(1, 31)] == GOLDEN[name]["collatz"]
