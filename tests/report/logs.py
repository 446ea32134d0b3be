"""Logs made by hand, event by event, and the command run on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define

from trio_wasmcache._core.events import (
    Acquired,
    Closed,
    Event,
    Evicted,
    Loaded,
    Lost,
    Opened,
    Reason,
    Recycled,
    Registered,
    Requested,
    Stamped,
)
from trio_wasmcache.report.cli.commands import run
from trio_wasmcache.report.reading.schema import types_of

MiB = 2**20
PAGE = 65536


def make(kind: type[Event], **known: Any) -> Event:
    """An event whose other fields are null where they may be, else nothing in particular."""
    nothing: dict[type, object] = {str: "x", int: 0, float: 0.0, bool: False, list: ()}
    fields = {
        field: None if type(None) in kinds else nothing[kinds[0]]
        for field, kinds in types_of(kind).items()
    }
    return kind(**fields | known)


OPENED = make(
    Opened,
    max_size_bytes=100 * MiB,
    max_instance_size_bytes=8 * MiB,
    max_instances=4096,
    max_code_size_bytes=40 * MiB,
    idle_timeout_seconds=5.0,
    log_uses=True,
)


@define(eq=False)
class Log:
    """One cache's log: each method adds one event at a time, in seconds."""

    cache: str = "cafe0001"
    lines: list[dict[str, Any]] = Factory(list)

    def add(self, at: float, event: Event) -> None:
        fields = Stamped(event, self.cache, len(self.lines) + 1, at).fields()
        self.lines.append({**fields, "event": event.name, "level": event.level})

    def opened(self, at: float = 0.0, **limits: Any) -> None:
        self.add(at, OPENED.changed(**limits))

    def closed(self, at: float) -> None:
        self.add(at, make(Closed))

    def registered(self, at: float, function: str) -> None:
        self.add(at, make(Registered, function=function, compile_seconds=0.25))

    def loaded(self, at: float, function: str = "f", seconds: float = 0.5, **more: Any) -> None:
        self.add(at, make(Loaded, **use(function) | {"load_seconds": seconds} | more))

    def evicted(
        self, at: float, reason: Reason = Reason.SIZE, function: str = "f", **more: Any
    ) -> None:
        known = {**use(function), "reason": reason, "freed_bytes": 2 * PAGE}
        known |= {"freed_code_bytes": 4096, "idle_seconds": 1.0, "age_seconds": 2.0, "uses": 3}
        known |= {"total_size_before_bytes": 10 * PAGE, "total_size_after_bytes": 8 * PAGE}
        known |= {"code_size_before_bytes": 8192, "code_size_after_bytes": 4096}
        self.add(at, make(Evicted, **known | more))

    def requested(self, at: float, request: int, function: str = "f", **more: Any) -> None:
        known = {**use(function), "request": request, "task": 1}
        del known["instance"]
        self.add(at, make(Requested, **known | more))

    def acquired(self, at: float, hit: bool = True, function: str = "f", **more: Any) -> None:
        known = {**use(function), "request": 1, "hit": hit, "uses": 1}
        known |= {"total_size_bytes": 8 * PAGE, "code_size_bytes": 8192}
        self.add(at, make(Acquired, **known | more))

    def recycled(self, at: float, function: str = "f", **more: Any) -> None:
        known = {**use(function), "request": 1, "size_bytes": 2 * PAGE, "held_seconds": 0.5}
        known |= {"calls": 1, "kept": True, "total_size_bytes": 10 * PAGE, "code_size_bytes": 8192}
        self.add(at, make(Recycled, **known | more))

    def lost(self, at: float, count: int, first: int) -> None:
        self.add(at, Lost(count=count, first_seq=first))

    def text(self) -> str:
        return text_of(self.lines)

    def write(self, path: Path) -> Path:
        path.write_text(self.text(), encoding="utf-8")
        return path


def use(function: str) -> dict[str, Any]:
    """The fields of all events about one instance; `group/function` names both."""
    group, _, name = function.rpartition("/")
    return {
        "function": name,
        "arg_types": "i64",
        "group": group or "main",
        "generation": 1,
        "instance": 1,
    }


def text_of(lines: Iterable[dict[str, Any]]) -> str:
    """As JSON lines."""
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def busy_log(cache: str = "cafe0001", rounds: int = 20) -> Log:
    """A cache at work: hits, misses, evictions for several reasons, thrash."""
    log = Log(cache)
    log.opened()
    log.registered(0.1, "f")
    at = 1.0
    for number in range(rounds):
        function = f"f{number % 3}"
        log.requested(at, number, function)
        log.loaded(at + 0.125, function, 0.125, request=number)
        log.acquired(at + 0.125, False, function, request=number, wait_seconds=0.125)
        log.recycled(at + 0.5, function, request=number)
        log.requested(at + 0.6, rounds + number, function)
        log.acquired(at + 0.6, True, function, request=rounds + number)
        log.recycled(at + 0.7, function, request=rounds + number)
        log.evicted(at + 0.9, [Reason.SIZE, Reason.IDLE, Reason.CODE][number % 3], function)
        at += 1
    log.closed(at)
    return log


@define
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` gave."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def cache(self) -> dict[str, Any]:
        """The only cache of the report."""
        (cache,) = self.document["caches"]
        assert isinstance(cache, dict)
        return cache


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Ran:
    """Run a command of the log tool in this process."""
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Ran(status, out, err)


def run_report(capsys: pytest.CaptureFixture[str], *logs: str | Path) -> Ran:
    """``report --json``."""
    return run_command(capsys, "report", "--json", *logs)


def without(lines: Sequence[dict[str, Any]], *numbers: int) -> list[dict[str, Any]]:
    """The lines without these sequence numbers."""
    return [line for line in lines if line["seq"] not in numbers]
