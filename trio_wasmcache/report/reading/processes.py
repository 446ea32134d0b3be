"""Runs one function over many things, in processes of their own where there is much to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from types import TracebackType
from typing import Any, Generic, TypeVar

from attrs import define

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
# In a process that works: the function, and what it shares.
_work: list[tuple[Callable[[Any, Any], Any], Any]] = []


@define(eq=False)
class Processes(Generic[S, T, R]):
    """Calls `run(shared, thing)` for things; each process gets `run` and `shared` once.

    Use it as a context manager; leaving the block ends the processes, whatever they are doing.
    """

    run: Callable[[S, T], R]
    shared: S
    most: int | None = None
    """Number of processes at most; None: one for each core."""
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes[S, T, R]:
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

    def results(self, things: Sequence[T], *, much: bool) -> Iterator[tuple[T, R]]:
        """Yield each thing with its result, as they are done.

        Args:
            things: the things.
            much: whether they are worth starting processes; those that run are used anyway.
        """
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if self.most is not None:
            processes = min(processes, self.most)
        if self._pool is None and not (much and len(things) > 1 and processes > 1):
            yield from ((thing, self.run(self.shared, thing)) for thing in things)
            return
        if self._pool is None:
            # Not forked: polars, which read the log, has threads.
            context = multiprocessing.get_context("spawn")
            shared = self.run, self.shared
            self._pool = ProcessPoolExecutor(processes, context, _begin, shared)
        futures = {self._pool.submit(_run, thing): thing for thing in things}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _begin(run: Callable[[S, T], R], shared: S) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work.append((run, shared))


def _run(thing: Any) -> Any:
    ((run, shared),) = _work
    return run(shared, thing)
