"""Activities in an instance for a lease, and how another task ends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from .._core.policy.shares import Share
from .._engine.base import HostCall
from .host import AnyHost
from .runner import Job, Polled, Runner

T = TypeVar("T")


class Activity:
    """A call, a batch, or the start of an instance. Its task drives it; any task may end it.

    An ended activity stops at its next step: at once if it waits, within a slice if the guest runs.
    Then it raises the error that was given to `end`.
    """

    def __init__(
        self, runner: Runner, share: Share, hosts: Sequence[AnyHost], lease: object
    ) -> None:
        self.runner = runner
        self.share = share
        self._hosts = hosts
        self._lease = lease  # what `current_lease` gives inside the guest's host functions
        self._job: Job | None = None
        self._apart: trio.CancelScope | None = None  # around a wait other than for a turn
        self.ended = False
        """Whether another task has ended it."""
        self._make_error: Callable[[], Exception] = trio.ClosedResourceError

    @property
    def host_call(self) -> HostCall | None:
        """Host call for which the guest is suspended; None if it is not."""
        return None if self._job is None else self._job.native.host_call

    def end(self, error: Callable[[], Exception]) -> None:
        """End it from another task; it raises the error that `error` returns."""
        self.ended = True
        self._make_error = error
        if self._job is not None:
            self._job.end()
        if self._apart is not None:
            self._apart.cancel()

    @property
    def out_of_thread(self) -> trio.Event | None:
        """Event that is set when the thread has left the guest; None if no thread runs it."""
        job = self._job
        return job.out_of_thread if job is not None and job.in_thread else None

    def check_open(self) -> None:
        """Raise the error given to `end`, if another task has ended it."""
        if self.ended:
            raise self._make_error()

    def error(self) -> Exception:
        """Return the error given to `end`, by which another task has ended it."""
        return self._make_error()

    async def unless_ended(self, wait: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await a load, or work in a thread, that is cancelled when this activity is ended.

        **Checkpoint:** as of `wait`.
        **Cancellation:** as of `wait`.
        """
        with trio.CancelScope() as self._apart:
            try:
                result = await wait(*args)
            except Exception:
                if not self.ended:
                    raise
            else:
                if not self.ended:
                    return result
        # A task that is cancelled, too, is told that first.
        await trio.lowlevel.checkpoint_if_cancelled()
        raise self._make_error()

    def new_job(self, native: Polled, fuel: int, burnt: int = 0) -> Job:
        """Return a job for `Runner.drive`; `job_over` must be called afterwards in any case."""
        self._job = job = Job(
            native, self.share, self._hosts, self._lease, fuel, burnt, ended=self.error
        )
        return job

    def job_over(self, job: Job) -> int:
        """End a job, and charge the group for the rest; return the fuel that the job has burnt."""
        self._job = None
        if not self.ended:
            job.charge()
        return job.burnt
