"""Define the commands that run a log through a policy: ``replay``, ``whatif`` and ``tune``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from attrs import Factory, define

from ..._core.config import CacheConfig, PolicyName
from ..._core.events import Stamped
from ..output.answers import (
    Ran,
    Setting,
    replay_document,
    show_replay,
    show_tuning,
    show_whatif,
    tune_document,
    whatif_document,
)
from ..reading.feeding import Feeder
from ..reading.notes import FLAWED, NOTHING, cite, count
from ..reading.processes import Processes
from ..replay.books import Limits, limits_of
from ..replay.replay import Replay
from ..replay.start import Beginning, Fed, Held, NotReplayable, Start
from ..tuning.advice import advise, rows_of
from ..tuning.fleet import Member, different
from ..tuning.search import POLICIES, Objective, Question, Search
from ..tuning.trials import Trials
from ..tuning.tuning import Tuner
from ..whatif.results import Result
from ..whatif.tasks import Application, Recorder
from ..whatif.whatif import Run, run_one
from .session import (
    CACHE,
    HTML,
    JSON,
    LABEL,
    LOGS,
    Session,
    parse_rate,
    parse_seconds,
    parse_size,
    parse_timeout,
    print_json,
    write_text,
)

T = TypeVar("T", Replay, "Programs", "Both")
F = TypeVar("F", "Programs", "Both")
# Leases times settings from which on processes are started: a second's work, and they take a half.
PROCESSES_FROM = 20_000
# Leases that all processes hold together at most, in 0.5 KB each.
MOST_COPIED = 1_000_000
# Number of caches that are named in a note.
NAMED = 3


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
@LABEL
@_limits
def whatif(
    logs: Sequence[str],
    as_json: bool,
    only: str | None,
    label: str | None,
    **given: Sequence[object],
) -> int:
    """Run the same requests under other limits.

    Each option may be given several times: every combination is tried. The log must have been
    written with log_uses. Tasks take the same steps in the same order; their waits are computed
    again, also under the log's own limits: any difference from the log there shows how far the
    result is approximated. `trio_wasmcache/report/whatif/whatif.py` lists what is exact.
    """
    settings = _settings({name: values for name, values in given.items() if values})
    session = Session(logs)
    found = [(cache, it, it.made) for cache, it in _fleet(session, only, label, Programs)]
    if not found:
        return NOTHING
    for _, programs, _ in found:
        programs.recorder.tell(session.notes)
    applications = [made for *_, made in found]
    with session.counted("running") as advanced:
        results = _run_all(applications, settings, advanced)
    ran = [
        Ran(cache, programs.label, made.hits, made.leases, own)
        for (cache, programs, made), own in zip(found, results, strict=True)
    ]
    if as_json:
        print_json({**whatif_document(settings, ran), "notes": session.notes.texts})
    else:
        show_whatif(session.out, settings, ran)
    return session.notes.status


def _run_all(
    applications: Sequence[Application],
    settings: Sequence[Setting],
    advanced: Callable[[int, int], None],
) -> list[list[Result]]:
    """Return the results of each application under each setting."""
    runs = [
        Run(index, row, setting.limits, setting.concurrency)
        for index in range(len(applications))
        for row, setting in enumerate(settings)
    ]
    leases = sum(it.leases for it in applications)
    most = max(1, MOST_COPIED // max(1, leases))
    found: dict[tuple[int, int], Result] = {}
    advanced(0, len(runs))
    with Processes(run_one, applications, most) as processes:
        much = leases * len(settings) >= PROCESSES_FROM
        for run, result in processes.results(runs, much=much):
            found[run.number, run.row] = result
            advanced(len(found), len(runs))
    rows = range(len(settings))
    return [[found[index, row] for row in rows] for index in range(len(applications))]


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


@define(eq=False)
class Programs(Fed):
    """The input of `whatif`: the programs of the tasks of one cache."""

    start: Start = Factory(lambda: Start("another run of it"))
    recorder: Recorder = Factory(Recorder)
    label: str = ""

    def begin(self, beginning: Beginning) -> None:
        self.recorder.begin(beginning)

    def take(self, event: Stamped) -> None:
        self.label = event.label or ""
        self.recorder.take(event)

    @property
    def made(self) -> Application:
        """The programs."""
        if self.recorder.made is None:
            raise AssertionError("a log that begins as it should has an opened cache")
        return self.recorder.made

    @property
    def leases(self) -> int:
        return self.recorder.leases

    @property
    def limits(self) -> Limits:
        """The limits with which the cache was opened."""
        return limits_of(self.made.beginning.head)


@define(eq=False)
class Both(Fed):
    """The input of `tune`: leases by the size they need, and programs to check the advice with."""

    start: Start = Factory(lambda: Start("tuning"))
    check: bool = True
    tuner: Tuner = Factory(Tuner)
    programs: Programs = Factory(Programs)
    label: str = ""

    def begin(self, beginning: Beginning) -> None:
        self.tuner.begin(beginning)
        if self.check:
            self.programs.begin(beginning)

    def take(self, event: Stamped) -> None:
        self.label = event.label or ""
        self.tuner.take(event)
        if self.check:
            self.programs.take(event)

    @property
    def leases(self) -> int:
        return self.tuner.leases

    @property
    def limits(self) -> Limits:
        """The limits in force at the end of the log."""
        return self.tuner.limits


@click.command()
@LOGS
@JSON
@HTML
@CACHE
@LABEL
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
    label: str | None,
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
    found = _fleet(session, only, label, lambda: Both(check=check))
    if not found:
        return NOTHING
    members = [Member(cache, it.label, it.tuner) for cache, it in found]
    tuners = [it.tuner for it in members]
    tuner = tuners[0] if len(tuners) == 1 else Tuner.together(tuners)
    if not tuner.leases:
        session.errors.print("no leases to tune by", style="red")
        return NOTHING
    for _, both in found:
        both.programs.recorder.tell(session.notes)
    if tuner.limited:
        groups = ", ".join(map(cite, sorted(tuner.limited)[:NAMED]))
        more = ", ..." * (len(tuner.limited) > NAMED)
        own = "its" if len(tuner.limited) == 1 else "their"
        session.notes.remark(
            f"{count(len(tuner.limited), 'group')} with a max_size or reserved_size of {own} own "
            f"({groups}{more}): the curve and the trials ignore these limits; the advice is "
            "checked with them"
        )
    target = 0.99 if target_hit_rate is None else target_hit_rate
    chosen = tuple(it for it in POLICIES if it in policies) or POLICIES
    question = Question(target, objective, max_size, chosen)
    traces = [it.trace.packed() for it in tuners]
    with session.counted("trying") as advanced, Trials(traces, advanced) as trials:
        search = Search(tuner, question, trials)
        advice = advise(search)
        rows_of(search, advice)  # while there are processes for it
        others = different(search, advice, members)
    if check:
        names = "policy", "max_size", "idle_timeout"
        setting = Setting({name: advice.limits[name] for name in names})
        with session.counted("checking") as advanced:
            ran = _run_all([both.programs.made for _, both in found], [setting], advanced)
        advice.checked = Result.together([own for (own,) in ran])
    if html is not None:
        # As in `report`: importing charts takes a second.
        from ..output.tuning_page import tuning_page

        write_text(html, tuning_page(search, advice, others, session.notes.texts))
    if as_json:
        document = tune_document(search, advice, members, others)
        print_json({**document, "notes": session.notes.texts})
    else:
        show_tuning(session.out, search, advice, members, others)
    return session.notes.status


def _feed(
    session: Session, only: str | None, make: Callable[[], T], label: str | None = None
) -> dict[str, T]:
    """Return {cache: an object from `make`, fed with the events of that cache}.

    Caches whose log is not sufficient are left out, with a note that gives the reason.
    """
    feeder = Feeder(session.reader, session.parser, only, label)
    made: dict[str, T] = {}
    refused: set[str] = set()
    held = Held()
    with session.bar():
        for event in feeder.events():
            cache = event.cache
            if cache in refused:
                continue
            if cache not in made:
                made[cache] = make()
                made[cache].start.held = held
            try:
                made[cache].feed(event)
            except NotReplayable as error:
                session.notes.problem(f"cache {cite(cache)}: {error}")
                refused.add(cache)
                del made[cache]
    for cache, one in list(made.items()):
        try:
            beginning = one.start.check()
        except NotReplayable as error:
            session.notes.problem(f"cache {cite(cache)}: {error}")
            refused.add(cache)
            del made[cache]
            continue
        if beginning.whole is not None:
            session.notes.remark(
                f"cache {cite(cache)}: the log begins with event {one.start.first:,}; this begins "
                f"with the snapshot after event {beginning.seq:,}"
            )
    session.tell()
    feeder.tell(session.notes)
    if not made and not refused:
        session.nothing(only, label)
    return made


def _fleet(
    session: Session, only: str | None, label: str | None, make: Callable[[], F]
) -> list[tuple[str, F]]:
    """Return the caches that are asked about, with the objects from `_feed`.

    With a `label`, these are all that have the same limits: those of most leases. Otherwise, it is
    the one with the most leases.
    """
    made = _feed(session, only, make, label)
    if not made:
        return []
    if label is None:
        cache, largest = max(made.items(), key=lambda item: item[1].leases)
        if len(made) > 1:
            session.notes.remark(
                f"{len(made)} caches in this log; this is about {cite(cache)}, which has the most "
                "leases (--cache ID is for the others, --label PATTERN for several together)"
            )
        return [(cache, largest)]
    alike: list[list[tuple[str, F]]] = []
    for member in made.items():
        for group in alike:
            if group[0][1].limits == member[1].limits:
                group.append(member)
                break
        else:
            alike.append([member])
    alike.sort(key=lambda group: -sum(it.leases for _, it in group))
    left_out = [cache for group in alike[1:] for cache, _ in group]
    if left_out:
        session.notes.remark(
            f"{count(len(left_out), 'cache')} with other limits left out: "
            f"{', '.join(map(cite, left_out[:NAMED]))}{', ...' * (len(left_out) > NAMED)} "
            f"(this is about {len(alike[0])}, which have the most leases)"
        )
    return alike[0]
