"""The commands that ask what would have been: ``replay``, ``whatif`` and ``tune``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from .answers import show_replay, show_tuning, show_whatif
from .feeding import Feeder
from .notes import NOTHING
from .replay import NotReplayable, Replay
from .results import Result
from .session import (
    CACHE,
    HTML,
    JSON,
    LOGS,
    Session,
    parse_seconds,
    parse_size,
    print_json,
    write_text,
)
from .tasks import Application, Recorder
from .tuning import Tuner, advise
from .units import seconds, size
from .whatif import WhatIf


@click.command()
@LOGS
@JSON
@CACHE
def replay(logs: Sequence[str], as_json: bool, only: str | None) -> int:
    """Run a log with log_uses through the cache's own policy, and compare."""
    session = Session(logs)
    feeder = Feeder(session.reader, session.parser, only)
    replays: dict[str, Replay | None] = {}
    with session.bar():
        for event in feeder.events():
            cache = event["cache"]
            if cache not in replays:
                replays[cache] = Replay()
            running = replays[cache]
            if running is not None:
                try:
                    running.feed(event)
                except NotReplayable as error:
                    session.notes.problem(f"cache {cache}: {error}")
                    replays[cache] = None
    session.tell()
    feeder.tell(session.notes)
    rows = []
    for cache, running in replays.items():
        if running is None:
            continue
        running.finish()
        if running.disagreed:
            session.notes.status = max(session.notes.status, 1)
        rows.append(
            {
                "cache": cache,
                "events": running.events,
                "leases": running.leases,
                "evictions": running.evictions,
                "disagreed": running.disagreed,
                "disagreements": [
                    {"seq": seq, "text": text} for seq, text in running.disagreements
                ],
            }
        )
    if not rows:
        return session.nothing() if not replays else NOTHING
    if as_json:
        print_json({"caches": rows, "notes": session.notes.texts})
    else:
        show_replay(session.out, rows)
    return session.notes.status


@click.command()
@LOGS
@JSON
@CACHE
@click.option(
    "--max-size", type=parse_size, multiple=True, help="Bytes of idle instances together."
)
@click.option("--max-instance-size", type=parse_size, multiple=True, help="Bytes of one instance.")
@click.option("--max-instances", type=int, multiple=True, help="Idle and running ones.")
@click.option("--max-code-size", type=parse_size, multiple=True, help="Bytes of code and stacks.")
@click.option("--idle-timeout", type=parse_seconds, multiple=True, help="Seconds, or inf.")
def whatif(logs: Sequence[str], as_json: bool, only: str | None, **limits: Sequence[Any]) -> int:
    """The same requests under other limits; each option may be given several times."""
    given = {name: values for name, values in limits.items() if values}
    if not given:
        raise click.UsageError("name at least one limit, such as --max-size 64MiB")
    settings = [
        dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())
    ]
    session = Session(logs)
    feeder = Feeder(session.reader, session.parser, only)
    recorders = _record(
        session, feeder, lambda: Recorder(), lambda one: one.made and one.made.leases
    )
    session.tell()
    feeder.tell(session.notes)
    if recorders is None:
        return session.nothing() if not feeder.lines else NOTHING
    recorder = recorders
    recorder.tell(session.notes)
    assert recorder.made is not None
    rows = []
    for setting in ({}, *settings):
        try:
            rows.append((_named(setting), WhatIf(recorder.made, setting).run()))
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
    if as_json:
        results = [{"setting": name, **result.as_dict()} for name, result in rows]
        print_json({"results": results, "notes": session.notes.texts})
    else:
        show_whatif(session.out, rows)
    return session.notes.status


@click.command()
@LOGS
@JSON
@HTML
@CACHE
@click.option("--target-hit-rate", type=click.FloatRange(0, 1), default=0.99, show_default=True)
@click.option(
    "--check/--no-check", default=True, help="Run the advised limits through the policy, too."
)
def tune(
    logs: Sequence[str],
    as_json: bool,
    html: Path | None,
    only: str | None,
    target_hit_rate: float,
    check: bool,
) -> int:
    """How large the cache has to be for a hit rate, and what each size would give."""
    session = Session(logs)
    feeder = Feeder(session.reader, session.parser, only)
    made = _record(session, feeder, lambda: _Both(check), lambda both: both.tuner.leases)
    session.tell()
    feeder.tell(session.notes)
    if made is None:
        return session.nothing() if not feeder.lines else NOTHING
    tuner = made.tuner
    if not tuner.leases:
        session.errors.print("no leases to tune by", style="red")
        return NOTHING
    curve, advice = advise(tuner, target_hit_rate)
    checked = None
    if made.recorder is not None and made.recorder.made is not None:
        checked = _check(made.recorder.made, advice.max_size, advice.idle_timeout)
    if html is not None:
        from .tuning_page import tuning_page

        write_text(html, tuning_page(tuner, curve, advice, checked, session.notes.texts))
    if as_json:
        timeout = None if advice.idle_timeout == math.inf else advice.idle_timeout
        print_json(
            {
                "leases": tuner.leases,
                "hit_rate": tuner.hits / tuner.leases,
                "target_hit_rate": target_hit_rate,
                "advice": {
                    "sentence": advice.sentence,
                    "line": advice.line,
                    "max_size": advice.max_size,
                    "idle_timeout": timeout,
                    "hit_rate": curve.at(advice.max_size).hit_rate,
                },
                "checked": None if checked is None else checked.as_dict(),
                "knee": curve.knee(),
                "curve": [
                    {
                        "max_size": point.max_size,
                        "hit_rate": point.hit_rate,
                        "load_seconds": point.load_seconds,
                    }
                    for point in curve.points()
                ],
                "notes": session.notes.texts,
            }
        )
    else:
        show_tuning(session.out, tuner, curve, advice, checked)
    return session.notes.status


class _Both:
    """What `tune` needs: leases by what they need, and programs to check the advice with."""

    def __init__(self, check: bool) -> None:
        self.tuner = Tuner()
        self.recorder = Recorder() if check else None

    def feed(self, event: dict[str, Any]) -> None:
        self.tuner.feed(event)
        if self.recorder is not None:
            self.recorder.feed(event)


def _record(
    session: Session, feeder: Feeder, make: Callable[[], Any], leases: Callable[[Any], Any]
) -> Any:
    """Feed the events of each cache to one of `make`'s; gives that with the most leases."""
    made: dict[str, Any] = {}
    with session.bar():
        for event in feeder.events():
            cache = event["cache"]
            if cache not in made:
                made[cache] = make()
            if made[cache] is not None:
                try:
                    made[cache].feed(event)
                except NotReplayable as error:
                    session.notes.problem(f"cache {cache}: {error}")
                    made[cache] = None
    found = {cache: one for cache, one in made.items() if one is not None}
    if not found:
        return None
    cache, best = max(found.items(), key=lambda item: leases(item[1]) or 0)
    if len(found) > 1:
        session.notes.remark(
            f"{len(found)} caches in this log; this is about {cache}, which has the most leases "
            "(--cache ID is for the others)"
        )
    return best


def _check(application: Application, max_size: int, idle_timeout: float) -> Result | None:
    try:
        return WhatIf(application, {"max_size": max_size, "idle_timeout": idle_timeout}).run()
    except ValueError:
        return None


def _named(setting: dict[str, Any]) -> str:
    if not setting:
        return "as logged"
    parts = []
    for name, value in setting.items():
        shown = str(value) if name == "max_instances" else size(value)
        parts.append(f"{name}={seconds(value) if name == 'idle_timeout' else shown}")
    return " ".join(parts)
