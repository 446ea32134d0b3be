"""The soak in its small profile, and that it sees what it is there for."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from kits import WasmtimeKit, add, open_real_cache
from soak.drift import MIB, books_left, busy_threads, code_mappings, drifts, growth, handles_left
from soak.guests import GUESTS
from soak.life import CONFIG, Life

ROOT = Path(__file__).parents[2]


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.soak", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_short_soak_finds_nothing() -> None:
    """A line for each interval, and one that sums up; nothing wrong, nothing left."""
    done = soak("--minutes", "0.05", "--interval", "1.5")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert " calls, " in line
        assert " accounted " in line
        assert ", 0 with all removed; " in line
    assert lines[2].endswith(" operations, 0 problems")


@pytest.mark.parametrize(
    ("name", "spoilt", "said"),
    [
        ("adds", {"result": lambda x: x + 8}, "'adds' of "),
        ("traps", {"fails": None}, "TrapError"),
        ("begins with a trap", {"fails": TypeError}, "LoadError"),
        ("works", {"fails": TypeError}, "'works' of "),
        ("counts", {"values": lambda random: (1,)}, "TypeError"),
    ],
)
async def test_what_is_unexpected_is_a_problem(
    name: str, spoilt: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong result, an error that a guest may not have, none where it must: each is told."""
    guest = evolve(GUESTS[name], column=None, **spoilt)
    monkeypatch.setitem(GUESTS, name, guest)
    for other in GUESTS.keys() - {name}:
        monkeypatch.delitem(GUESTS, other)
    async with open_real_cache(CONFIG) as cache:
        life = Life(cache, Random(1))
        await life.register(name)
        while not life.problems and life.operations < 50:
            await life.lease(1)
        assert said in life.problems[0]


async def test_a_secret_that_is_found_is_a_problem() -> None:
    """What another lease left in memory is looked for, unless the isolation allows it."""
    async with open_real_cache(CONFIG) as cache:
        life = Life(cache, Random(1))
        guest = GUESTS["adds"]
        for isolation in ("reuse", "fresh"):
            wasm = guest.make(1)
            function = await add(cache, isolation, wasm, isolation=isolation)
            async with function.acquire() as lease:
                life.hide("adds", guest, lease)
                assert not life.problems
                life.hide("adds", guest, lease)
        assert len(life.problems) == 1
        assert "'adds', fresh, has another's" in life.problems[0]


async def test_what_is_left_is_told(real: WasmtimeKit) -> None:
    """Books that are not at zero, open handles, and threads with something to do."""
    async with open_real_cache() as cache:
        assert handles_left() == []
        assert books_left(cache.stats()) == []
        function = await add(cache, "f", real.adding(1))
        await function.call(1)
        mappings = code_mappings()
        left = books_left(cache.stats())
        assert {line.split()[0] for line in left} >= {"functions", "total_size", "accounted_size"}
        assert handles_left() == ["1 open stores", "1 open modules"]
        cache.remove("f")
        assert books_left(cache.stats()) == handles_left() == []
        assert code_mappings() == mappings - 1
    before, go = busy_threads(), threading.Event()
    thread = threading.Thread(target=go.wait, name="at work")
    thread.start()
    assert busy_threads() - before == {"at work"}
    go.set()
    thread.join()


def test_growth_is_judged_after_the_warm_up() -> None:
    """By the best line through what came after the first third, and not if that is little."""
    steady = [(float(minute), 100.0 * MIB) for minute in range(12)]
    warm = [(minute, value / 2 if minute < 4 else value) for minute, value in steady]
    leak = [(minute, value + 3 * MIB * minute) for minute, value in steady]
    assert growth(steady) == growth(warm) == 0
    assert growth(leak) == pytest.approx(7 * 3 * MIB)
    assert drifts(warm) is None
    assert "RSS grew by 21.0 MiB after the warm-up, at most 8: 100, 103, " in str(drifts(leak))
    assert growth(leak[:6]) is None
