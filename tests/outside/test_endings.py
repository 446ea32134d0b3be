"""However a program ends with an endless guest under way, it ends, and the cache is closed.

Each way is a process (`ending`). It must end by itself, with the right status; when a cache is
closed, nothing native is open; and each log is whole, and ends with ``wasmcache.closed``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from outside.ending import HANG, TERMINATED, UDF_WAYS, WAYS

HERE = Path(__file__).parent
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SENT = {
    "interrupt_in_call": signal.SIGINT,
    "interrupt_elsewhere": signal.SIGINT,
    "terminate": signal.SIGTERM,
    "asyncio_interrupt": signal.SIGINT,
}
# {way: exit status}, where it is not 0. After Ctrl-C, Python ends as SIGINT would end it.
STATUS = {
    "raise_": 1,
    "interrupt_in_call": -signal.SIGINT,
    "interrupt_elsewhere": -signal.SIGINT,
    "interrupt_main": -signal.SIGINT,
    "terminate": TERMINATED,
    "exit_in_host": 4,
    "asyncio_interrupt": -signal.SIGINT,
}
# {way: exception by which the endless call ends}, where the cache's end is not what ends it.
HOW = dict.fromkeys(("interrupt_in_call", "interrupt_main"), "KeyboardInterrupt") | {
    "terminate": "SystemExit",
    "asyncio_never_closed": "CancelledError",
    "asyncio_interrupt": "CancelledError",
    "asyncio_host_call": "cancelled",
}
# In each test run; the others are for the night, and all of them with wasmtime.
USUAL = ("interrupt_in_call", "fork")
CHOSEN = [
    *((way, "fake") for way in (WAYS if NIGHTLY else USUAL)),
    *((way, "wasmtime") for way in (WAYS if NIGHTLY else ("executor",))),
    *((way, "udf") for way in (UDF_WAYS if NIGHTLY else ())),
]


def run(way: str, engine: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run a program to its end; return its status, its lines, and what it wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, HERE / "ending.py", way, engine],
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE.parents[1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # or lines that came together with the one that is waited for would be lost
    )
    try:
        lines = []
        assert process.stdout is not None
        if way in SENT:
            for line in process.stdout:
                lines.append(line)
                if json.loads(line).get("mark") == "ready":
                    break
            process.send_signal(SENT[way])
        rest, errors = process.communicate(timeout=5 * HANG)
    finally:
        process.kill()
    read = [json.loads(one) for one in (*lines, *rest.splitlines())]
    return process.returncode, read, errors.decode()


def check_logs(lines: list[dict[str, Any]]) -> None:
    """Each log is whole: no gap, nothing after `closed`, and everything that began has an end."""
    events = sorted((line for line in lines if "event" in line), key=lambda line: line["cache"])
    assert events
    for _, group in groupby(events, key=lambda line: line["cache"]):
        log = list(group)
        assert [line["seq"] for line in log] == list(range(1, len(log) + 1))
        assert log[0]["event"] == "wasmcache.opened"
        assert log[-1]["event"] == "wasmcache.closed"
        loaded = Counter(one["instance"] for one in log if one["event"] == "wasmcache.loaded")
        evicted = Counter(one["instance"] for one in log if one["event"] == "wasmcache.evicted")
        assert loaded == evicted


@pytest.mark.parametrize(("way", "engine"), CHOSEN)
def test_a_program_ends(way: str, engine: str) -> None:
    """By itself, with the right status; nothing native is left open, and the log is whole."""
    status, lines, errors = run(way, engine)
    marks = [line for line in lines if "mark" in line]
    assert status == STATUS.get(way, 0), errors
    if way == "raise_":
        assert errors.rstrip().endswith("LookupError: of the block")
    elif status != -signal.SIGINT and way != "asyncio_loop_left":
        assert errors == ""
    check_logs(lines)
    caches = {line["cache"] for line in lines if "event" in line}
    native = [mark["open"] for mark in marks if mark["mark"] == "native"]
    assert native == [0] * len(caches)
    hows = {mark["how"] for mark in marks if mark["mark"] == "ended"}
    if way != "asyncio_loop_left":
        assert hows == {HOW.get(way, "ClosedResourceError")}
    if way in ("fork", "fork_and_open") or way.startswith("process"):
        assert [mark["status"] for mark in marks if mark["mark"] == "child"] == [5]
        assert len(caches) == 1 + (way != "fork")
    if way == "fork":
        (refused,) = (mark["why"] for mark in marks if mark["mark"] == "refused")
        assert "belongs to process" in refused
    if way == "asyncio_host_call":
        ends = [mark["mark"] for mark in marks]
        assert ends.index("coroutine ended") < ends.index("ended")
