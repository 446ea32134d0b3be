"""A thread that breathes lets others have the interpreter."""

from __future__ import annotations

import sys
import threading

import pytest

from trio_wasmcache import _gil


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
