"""A thread that breathes lets others have the interpreter."""

from __future__ import annotations

import sys
import threading

import pytest
from counting import no_new_threads

import trio_wasmcache
from trio_wasmcache import _gil, blocking


def test_another_thread_gets_its_turn() -> None:
    """Even where Python itself would never switch, the other one runs meanwhile."""
    ran: list[bool] = []
    breathes = _gil.Breath(0.0)
    interval = sys.getswitchinterval()
    go = threading.Event()
    other = threading.Thread(target=lambda: ran.append(go.wait()))
    sys.setswitchinterval(1000)
    try:
        other.start()
        go.set()
        for _ in range(10_000):
            breathes()
            if ran:
                break
        ran_meanwhile = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        other.join()
    assert ran_meanwhile


def test_it_breathes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every call: a breath costs more than what is done between two calls."""
    monkeypatch.setattr(_gil, "LENGTH", -1.0)  # would raise
    breathes = _gil.Breath(1000.0)
    for _ in range(100):
        breathes()


async def test_a_cache_is_refused_where_the_gil_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to switch it on; nothing was opened."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with (
        no_new_threads(),
        pytest.raises(RuntimeError, match=r"open_cache\(\) needs the GIL.*PYTHON_GIL=1"),
    ):
        async with trio_wasmcache.open_cache():
            raise AssertionError("it is open")
    with pytest.raises(RuntimeError, match="PYTHON_GIL=1"), blocking.open_cache():
        raise AssertionError("it is open")
