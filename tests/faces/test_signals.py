"""Semantics 18 from outside: a process gets real signals, with a call in every state there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from faces.under_fire import INTERRUPTED, TERMINATED
from kits import ListLogger

import trio_wasmcache
from trio_wasmcache import CacheConfig

HERE = Path(__file__).parent
# Seconds after which a child that hangs is killed, far more than it takes on a machine under load.
HANG = 600
CONFIG = CacheConfig(log_flush_timeout=HANG)
STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
STATES = {
    *("in an async host function", "waiting for an instance", "in a thread", "in a batch"),
    *("waiting for a thread", "loading", "in its block", "inline", "waiting for a token"),
    *("waiting for room", "reading a module", "compiling"),
}


class Child:
    """The program of `under_fire`, read line by line."""

    def __init__(self, place: str, folder: Path) -> None:
        fifo = folder / "never.wasm"
        os.mkfifo(fifo)
        self.sent = folder / "never.wasm.sent"
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, HERE / "under_fire.py", place, fifo],
            env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE.parents[1]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.timer = threading.Timer(HANG, self.process.kill)
        self.timer.start()

    def read_until(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Up to the line that is wanted, or to the end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if wanted(self.lines[-1]):
                return

    def read_until_ready(self) -> None:
        self.read_until(lambda line: line.get("mark") == "ready")
        assert self.lines[-1].get("mark") == "ready"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.sent.touch()

    def check_end(self, code: int) -> None:
        """Read what is left, and see that it exits with this code and writes no errors."""
        self.read_until(lambda line: False)
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        assert not errors, errors
        assert self.process.wait() == code

    def close(self) -> None:
        """Leave nothing of it, whatever has failed."""
        self.timer.cancel()
        with self.process:  # closes the pipes, and waits
            self.process.kill()

    def ends(self) -> dict[str, str]:
        """{state: how it ended}."""
        return {line["name"]: line["how"] for line in self.lines if line.get("mark") == "ended"}

    def check_log(self) -> None:
        """It is whole: no gap, nothing after `closed`, and everything that began has an end."""
        log = [line for line in self.lines if "event" in line]
        assert [line["seq"] for line in log] == list(range(1, len(log) + 1))
        assert log[0]["event"] == "wasmcache.opened"
        assert log[-1]["event"] == "wasmcache.closed"

        def told(event: str, field: str) -> Counter[Any]:
            return Counter(line[field] for line in log if line["event"] == f"wasmcache.{event}")

        assert told("loaded", "instance") == told("evicted", "instance")
        assert told("acquired", "request") == told("recycled", "request")
        assert told("group_opened", "group") == told("group_closed", "group")
        for_token = {line["seq"] for line in log if line.get("waits_for") == "a token"}
        ended = told("acquired", "request") + told("abandoned", "request")
        assert ended == told("requested", "request") + Counter({None: len(for_token)})


@pytest.fixture
def make_child(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """What starts a child in a place; each is ended with the test."""
    with ExitStack() as children:

        def make(place: str) -> Child:
            child = Child(place, tmp_path)
            children.callback(child.close)
            return child

        yield make


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize("place", ["inside", "outside", "sync"])
def test_a_signal_ends_everything(
    place: str, number: signal.Signals, make_child: Callable[[str], Child]
) -> None:
    """Everybody is cancelled or told, the cache is closed, and its log is whole."""
    child = make_child(place)
    child.read_until_ready()
    assert place == "sync" or not child.ends()
    child.send(number)
    child.check_end(STATUS[number])
    assert child.ends().keys() == STATES
    told = {"closed"} if place == "outside" else {"Cancelled", "well"}
    assert set(child.ends().values()) <= told
    child.check_log()


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_again_and_again(seed: int, make_child: Callable[[str], Child]) -> None:
    """However often it comes while the cache closes, that is done to the end."""
    random = Random(seed)
    child = make_child("outside")
    child.read_until_ready()
    closed = threading.Event()

    def interrupt() -> None:
        while not closed.wait(random.random() * 0.003):
            child.send(signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    child.read_until(lambda line: line.get("event") == "wasmcache.closed")
    closed.set()
    sender.join()
    child.check_end(INTERRUPTED)
    # One may have hit a task of the program's own, before it could tell how it ended.
    assert child.ends().keys() <= STATES
    child.check_log()


async def test_closing_needs_no_thread_of_trios(log: ListLogger) -> None:
    """The log is written out though all of Trio's worker threads are taken, and at once."""
    limiter = trio.to_thread.current_default_thread_limiter()
    taken = [object() for _ in range(int(limiter.total_tokens))]
    for who in taken:
        limiter.acquire_on_behalf_of_nowait(who)
    try:
        with trio.fail_after(HANG):
            async with trio_wasmcache.open_cache(CONFIG, logger=log):
                pass
    finally:
        for who in taken:
            limiter.release_on_behalf_of(who)
    assert log.lines[-1][1] == "wasmcache.closed"
