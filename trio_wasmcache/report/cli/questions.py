"""Define the commands that run a log through a policy: ``replay``, ``whatif`` and ``tune``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ..._core.config import CacheConfig, PolicyName
from ..._core.events import Stamped
from ..output.answers import (
    Setting,
    off_by_points,
    replay_document,
    show_replay,
    show_tuning,
    show_whatif,
    tune_document,
)
from ..reading.feeding import Feeder
from ..reading.notes import FLAWED, NOTHING, cite, count
from ..replay.replay import NotReplayable, Replay
from ..tuning.advice import advise, rows_of
from ..tuning.search import POLICIES, Objective, Question, Search
from ..tuning.trials import Trials
from ..tuning.tuning import Tuner
from ..whatif.tasks import Application, Recorder
from ..whatif.whatif import WhatIf
from .session import (
    CACHE,
    HTML,
    JSON,
    LOGS,
    Session,
    parse_rate,
    parse_seconds,
    parse_size,
    parse_timeout,
    print_json,
    write_text,
)

T = TypeVar("T", Replay, Recorder, "Both")


@click.command()
@LOGS
@JSON
@CACHE
def replay(logs: Sequence[str], as_json: bool, only: str | None) -> int:
    """Run a log with log_uses through the cache's own policy, and compare.

    Exits with 0 if the books agree with the log everywhere, and it is all there; with 1 if they
    disagree, or events are missing; with 2 if there is nothing that can be replayed.
    """
    session = Session(logs)
    replays = _feed(session, only, Replay)
    for cache, running in replays.items():
        running.finish()
        if running.disagreed:
            session.notes.status = FLAWED
        if running.gap is not None:
            session.notes.problem(
                f"cache {cite(cache)}: replayed up to event {running.gap[0] - 1:,}; those after "
                f"it are missing, and {count(running.left_out, 'event')} after them left out"
            )
        elif not running.complete:
            session.notes.remark(f"cache {cite(cache)}: the log ends before the cache was closed")
    if not replays:
        return NOTHING
    if as_json:
        print_json(replay_document(replays, session.notes.texts))
    else:
        show_replay(session.out, replays)
    return session.notes.status


def _limits(command: Callable[..., int]) -> Callable[..., int]:
    for name, kind, metavar, text in (
        ("concurrency", int, "NUMBER", "Number of instances of each function in each group."),
        ("max-idle-timeout", parse_seconds, "SECONDS", "Longest adaptive timeout."),
        ("min-idle-timeout", parse_seconds, "SECONDS", "Shortest adaptive timeout."),
        ("idle-timeout", parse_timeout, "SECONDS", 'Seconds, "inf" or "adaptive".'),
        (
            "max-running-size",
            parse_size,
            "SIZE",
            "All running instances, each by its worst size.",
        ),
        ("max-code-size", parse_size, "SIZE", "Code of loaded modules and stacks together."),
        ("max-instances", int, "NUMBER", "Number of idle and running instances."),
        ("max-instance-size", parse_size, "SIZE", "Largest instance that is kept."),
        ("max-size", parse_size, "SIZE", "All idle instances together, such as 64MiB."),
        ("policy", click.Choice(POLICIES), None, "What is evicted first."),
    ):
        option = click.option(f"--{name}", type=kind, multiple=True, metavar=metavar, help=text)
        command = option(command)
    return command


@click.command()
@LOGS
@JSON
@CACHE
@_limits
def whatif(logs: Sequence[str], as_json: bool, only: str | None, **given: Sequence[object]) -> int:
    """Run the same requests under other limits.

    Each option may be given several times: every combination is tried. The log must have been
    written with log_uses. Tasks take the same steps in the same order; their waits are computed
    again, also under the log's own limits: any difference from the log there shows how far the
    result is approximated. `trio_wasmcache/report/whatif/whatif.py` lists what is exact.
    """
    settings = _settings({name: values for name, values in given.items() if values})
    session = Session(logs)
    recorder = _largest(session, only, Recorder)
    made = None if recorder is None else recorder.made
    if recorder is None or made is None:
        return NOTHING
    recorder.tell(session.notes)
    rows = [(it, it.run(made)) for it in session.each(settings, "running")]
    if as_json:
        results = [{"setting": setting.as_dict(), **it.as_dict()} for setting, it in rows]
        logged = {
            "hits": made.hits,
            "misses": made.leases - made.hits,
            "off_by_points": off_by_points(rows[0][1], made),
        }
        print_json({"logged": logged, "results": results, "notes": session.notes.texts})
    else:
        show_whatif(session.out, rows, made)
    return session.notes.status


def _settings(given: dict[str, Sequence[Any]]) -> list[Setting]:
    """Return every combination of limits, after the log's own."""
    if not given:
        raise click.UsageError("name at least one limit, such as --max-size 64MiB")
    settings = [Setting({})]
    for values in itertools.product(*given.values()):
        setting = Setting(dict(zip(given, values, strict=True)))
        try:
            CacheConfig(**setting.limits)
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
        if setting.concurrency is not None and setting.concurrency < 1:
            raise click.UsageError(f"concurrency must be at least 1, got {setting.concurrency}")
        settings.append(setting)
    return settings


class Both:
    """The input of `tune`: leases by the size they need, and programs to check the advice with."""

    def __init__(self, check: bool) -> None:
        self.tuner: Tuner = Tuner()
        self.recorder: Recorder = Recorder()
        self.check = check

    def feed(self, event: Stamped) -> None:
        self.tuner.feed(event)
        if self.check:
            self.recorder.feed(event)

    @property
    def made(self) -> Application | None:
        """The programs to run; None without `check`."""
        return self.recorder.made

    @property
    def leases(self) -> int:
        return self.tuner.leases


@click.command()
@LOGS
@JSON
@HTML
@CACHE
@click.option(
    "--target-hit-rate",
    type=parse_rate,
    metavar="RATE",
    help="Part of the leases that are to be hits, from 0 to 1.  [default: 0.99]",
)
@click.option(
    "--max-size",
    type=parse_size,
    metavar="SIZE",
    help="Find the best policy and timeout for this size instead, such as 64MiB.",
)
@click.option(
    "--objective",
    type=click.Choice(get_args(Objective)),
    default="misses",
    show_default=True,
    help="What is to be least: the number of loads, or the time that they take.",
)
@click.option(
    "--policy",
    "policies",
    type=click.Choice(POLICIES),
    multiple=True,
    help="Consider only this policy; may be given several times.  [default: all]",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Run the advised limits with all others as they are, too.",
)
def tune(
    logs: Sequence[str],
    as_json: bool,
    html: Path | None,
    only: str | None,
    target_hit_rate: float | None,
    max_size: int | None,
    objective: Objective,
    policies: tuple[PolicyName, ...],
    check: bool,
) -> int:
    """Find the policy, the size and the timeout for a hit rate, or the best ones for a size.

    The log must have been written with log_uses. The curve and the trials assume that leases begin
    and end as in the log, and that limits other than max_size and idle_timeout do not interfere;
    then they are exact, the curve from the size of the largest instance on. The check drops both
    assumptions.
    """
    if target_hit_rate is not None and max_size is not None:
        raise click.UsageError(
            "--target-hit-rate asks for a size, and --max-size gives one: use one of them"
        )
    session = Session(logs)
    made = _largest(session, only, lambda: Both(check))
    if made is None:
        return NOTHING
    tuner = made.tuner
    if not tuner.leases:
        session.errors.print("no leases to tune by", style="red")
        return NOTHING
    made.recorder.tell(session.notes)
    target = 0.99 if target_hit_rate is None else target_hit_rate
    chosen = tuple(it for it in POLICIES if it in policies) or POLICIES
    question = Question(target, objective, max_size, chosen)
    with session.counted("trying") as advanced, Trials(tuner.trace.packed(), advanced) as trials:
        search = Search(tuner, question, trials)
        advice = advise(search)
        rows_of(search, advice)  # while there are processes for it
    if made.made is not None:
        names = "policy", "max_size", "idle_timeout"
        advice.checked = WhatIf(made.made, {name: advice.limits[name] for name in names}).run()
    if html is not None:
        # As in `report`: importing charts takes a second.
        from ..output.tuning_page import tuning_page

        write_text(html, tuning_page(search, advice, session.notes.texts))
    if as_json:
        print_json({**tune_document(search, advice), "notes": session.notes.texts})
    else:
        show_tuning(session.out, search, advice)
    return session.notes.status


def _feed(session: Session, only: str | None, make: Callable[[], T]) -> dict[str, T]:
    """Return {cache: an object from `make`, fed with the events of that cache}.

    Caches whose log is not sufficient are left out, with a note that gives the reason.
    """
    feeder = Feeder(session.reader, session.parser, only)
    made: dict[str, T] = {}
    refused: set[str] = set()
    with session.bar():
        for event in feeder.events():
            cache = event.cache
            if cache in refused:
                continue
            if cache not in made:
                made[cache] = make()
            try:
                made[cache].feed(event)
            except NotReplayable as error:
                session.notes.problem(f"cache {cite(cache)}: {error}")
                refused.add(cache)
                del made[cache]
    session.tell()
    feeder.tell(session.notes)
    if not made and not refused:
        session.nothing(only)
    return made


def _largest(session: Session, only: str | None, make: Callable[[], T]) -> T | None:
    """Return the object from `_feed` with the most leases; None if there is none."""
    made = _feed(session, only, make)
    if not made:
        return None
    cache, largest = max(made.items(), key=lambda item: item[1].leases)
    if len(made) > 1:
        session.notes.remark(
            f"{len(made)} caches in this log; this is about {cite(cache)}, which has the most "
            "leases (--cache ID is for the others)"
        )
    return largest
