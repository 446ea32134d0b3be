"""Runs trials of a trace, in processes of their own where there is much to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from types import TracebackType

from attrs import Factory, define

from .trace import Trace
from .trial import Outcome, Settings, Trial

# Leases times trials from which on processes are started: a second's work, and they take a third.
PROCESSES_FROM = 400_000
# The trace of a process that runs trials.
_traces: list[Trace] = []


@define(eq=False)
class Trials:
    """Remembers the outcomes of a trace under all settings that were asked for.

    Use it as a context manager; leaving the block ends the processes, whatever they are doing.
    """

    trace: Trace
    advanced: Callable[[int, int], None] = lambda _done, _wanted: None
    """Called with the numbers of trials done and wanted so far."""
    processes_from: int = PROCESSES_FROM
    _outcomes: dict[Settings, Outcome] = Factory(dict)
    _wanted: int = 0
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes so far."""
        return list(self._outcomes.values())

    def run(self, wanted: Iterable[Settings]) -> list[Outcome]:
        """Return the outcome for each of `wanted`, in order; runs those that are new."""
        settings = list(wanted)
        new = [it for it in dict.fromkeys(settings) if it not in self._outcomes]
        self._wanted += len(new)
        self.advanced(len(self._outcomes), self._wanted)
        for outcome in self._run_all(new):
            self._outcomes[outcome.settings] = outcome
            self.advanced(len(self._outcomes), self._wanted)
        return [self._outcomes[it] for it in settings]

    def _run_all(self, new: list[Settings]) -> Iterable[Outcome]:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        much = len(new) > 1 and len(self.trace.loads) * len(new) >= self.processes_from
        if self._pool is None and not (much and processes > 1):
            return (Trial(self.trace, it).run() for it in new)
        if self._pool is None:
            # Not forked: polars, which read the log, has threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, context, _begin, (self.trace,))
        pool = self._pool
        return (it.result() for it in as_completed([pool.submit(_run, it) for it in new]))


def _begin(trace: Trace) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _traces.append(trace)


def _run(settings: Settings) -> Outcome:
    return Trial(_traces[0], settings).run()
