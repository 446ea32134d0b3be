"""Runs trials of a trace, in processes of their own where there is much to do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from attrs import Factory, define

from ..reading.processes import Processes
from .trace import Trace
from .trial import Outcome, Settings, Trial

# Leases times trials from which on processes are started: a second's work, and they take a third.
PROCESSES_FROM = 400_000


@define(eq=False)
class Trials:
    """Remembers the outcomes under all settings that were asked for, of one trace or of several.

    Several are those of caches under the same settings: their outcomes are added up.

    Use it as a context manager; leaving the block ends the processes, whatever they are doing.
    """

    traces: Sequence[Trace]
    advanced: Callable[[int, int], None] = lambda _done, _wanted: None
    """Called with the numbers of trials done and wanted so far."""
    processes_from: int = PROCESSES_FROM
    _outcomes: dict[Settings, Outcome] = Factory(dict)
    _each: dict[tuple[int, Settings], Outcome] = Factory(
        dict
    )  # {(index of a trace, settings): ...}
    _wanted: int = 0
    _processes: Processes[Sequence[Trace], tuple[int, Settings], Outcome] = Factory(
        lambda self: Processes(_run, self.traces), takes_self=True
    )

    def __enter__(self) -> Trials:
        self._processes.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._processes.__exit__(kind, error, traceback)

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes so far."""
        return list(self._outcomes.values())

    def run(self, wanted: Iterable[Settings]) -> list[Outcome]:
        """Return the outcome for each of `wanted`, in order; runs those that are new."""
        settings = list(wanted)
        new = [it for it in dict.fromkeys(settings) if it not in self._outcomes]
        items = list(itertools.product(range(len(self.traces)), new))
        self._wanted += len(items)
        self.advanced(len(self._each), self._wanted)
        much = sum(len(it.loads) for it in self.traces) * len(new) >= self.processes_from
        for item, outcome in self._processes.results(items, much=much):
            self._each[item] = outcome
            self.advanced(len(self._each), self._wanted)
        for it in new:
            self._outcomes[it] = Outcome.together(self.each(it))
        return [self._outcomes[it] for it in settings]

    def each(self, settings: Settings) -> list[Outcome]:
        """Return the outcome of each trace under settings that were run."""
        return [self._each[index, settings] for index in range(len(self.traces))]


def _run(traces: Sequence[Trace], item: tuple[int, Settings]) -> Outcome:
    index, settings = item
    return Trial(traces[index], settings).run()
