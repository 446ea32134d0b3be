"""Activities in an instance for a lease, and how another task ends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from .._abi.base import Value
from .._core.errors import StackOverflowError
from .._core.policy.records import Request
from .._core.policy.shares import Share
from .._core.text import shown
from .._engine.base import HostCall, Watch
from .._log import Origin
from .host import AnyHost
from .runner import (
    MAX_INVOKES,
    Job,
    Polled,
    Runner,
    context_of_call,
    refused,
    served_call,
)
from .session import KEY, Session

T = TypeVar("T")


class OutputLog(Protocol):
    """Logs what guests write, within limits of its own."""

    def output_origin(self, request: Request) -> Origin:
        """Return the origin of what the guest writes, in the task that calls it."""

    def output(self, request: Request, origin: Origin, stream: str, line: str) -> bool:
        """Log a line; return False if it was dropped."""

    def output_dropped(self, request: Request, origin: Origin, lines: int, size: int) -> None:
        """Count lines that were dropped, and their bytes, and log them if the limits allow it."""


class Activity:
    """A call, a batch, or the start of an instance. Its task drives it; any task may end it.

    An ended activity stops at its next step: at once if it waits, within a slice if the guest runs.
    Then it raises the error that was given to `end`. For host functions, it is a `HostCaller`.

    Args:
        runner: the runner of the cache.
        share: share of the group that is charged.
        hosts: host functions of the module.
        lease: the result of `current_lease` in them.
        log: where lines go that the guest writes.
        request: the request of the lease; None if it has ended.
    """

    quiet = False
    """See `HostCaller.quiet`."""
    watch: Watch | None = None
    """See `HostCaller.watch`."""
    aside = False
    """Whether the guest runs in threads from its second slice on, see `Job.aside`."""
    row: int | None = None
    """Row of a batch that runs row by row; None in a call."""
    find_row: Callable[[], int] | None = None
    """Function that returns the row that runs in a driver; None while no driver runs."""
    _origin: Origin | None = None
    """Origin of what the guest writes, once it has written something to the log."""
    _keep: dict[str, Any] | None = None
    _kept_row: int | None = None

    def __init__(
        self,
        runner: Runner,
        share: Share,
        hosts: Sequence[AnyHost],
        lease: object,
        log: OutputLog,
        request: Request | None,
    ) -> None:
        self._log = log
        self._request = request
        self.runner = runner
        self.share = share
        self._hosts = hosts
        self._lease = lease  # what `current_lease` gives inside the guest's host functions
        self._job: Job | None = None
        self._apart: trio.CancelScope | None = None  # around a wait other than for a turn
        self.ended: bool = False
        """Whether another task has ended it."""
        self._make_error: Callable[[], Exception] = trio.ClosedResourceError

    @property
    def host_call(self) -> HostCall | None:
        """Host call for which the guest is suspended; None if it is not."""
        return None if self._job is None else self._job.native.host_call

    def refuse_host_call(self) -> Exception | None:
        """Return the error for a host call that the guest makes while it must not, or None."""
        return None

    def note_host_error(self, index: int, error: Exception) -> None:
        """See `HostCaller`."""

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
        raise await refused(self._make_error)

    def new_job(
        self,
        native: Polled,
        fuel: int,
        burnt: int = 0,
        finish: Callable[[], object] | None = None,
    ) -> Job:
        """Return a job for `Runner.drive`; `job_over` must be called afterwards in any case."""
        self._job = job = Job(
            native,
            self.share,
            self._hosts,
            self._lease,
            fuel,
            burnt,
            ended=self.error,
            caller=self,
            finish=finish,
            aside=self.aside,
        )
        return job

    def job_over(self, job: Job) -> int:
        """End a job, and charge the group for the rest; return the fuel that the job has burnt."""
        self._job = None
        job.broken = None  # whose frames hold the job
        if not self.ended:
            job.charge()
        return job.burnt

    # -- for host functions, and for WASI among them

    async def invoke(self, export: str, values: tuple[object, ...]) -> Value:
        """Have the guest call an export for the host function that is running: see `Lease.invoke`.

        **Checkpoint:** cancellation is checked; others run between slices.
        **Cancellation:** the guest is stopped, and can't go on.
        """
        self.check_open()
        job, call = self._job, served_call.get(None)
        if job is None or call is None or call not in job.serving or call.invoke is None:
            raise RuntimeError(
                "invoke() works only in a reentrant host function, HostFunction(..., "
                "reentrant=True), while the guest that called it waits for it"
            )
        if job.broken is not None:
            raise trio.BrokenResourceError(
                "an earlier invoke() of this host function failed or was cancelled: the guest "
                "can't go on, and its call will fail"
            )
        if call.invoking:
            raise trio.BusyResourceError(
                "another invoke() of this host function is under way; await it first"
            )
        if not isinstance(export, str):
            raise TypeError(f"invoke(): the name of an export must be a str, got {shown(export)}")
        if job.invokes >= MAX_INVOKES:
            raise StackOverflowError(
                f"the guest and its host functions call each other more than {MAX_INVOKES} deep: "
                f"invoke({export!r:.100}) would be number {MAX_INVOKES + 1}"
            )
        return await self.runner.invoke(job, call, export, values)

    @property
    def fuel_before(self) -> int:
        """Units of fuel that were burnt before the job that is under way."""
        return 0

    def burnt(self) -> int:
        """Return the units of fuel that it has burnt so far."""
        job = self._job
        return self.fuel_before + (0 if job is None else job.fuel - job.native.fuel_left())

    @property
    def keep(self) -> dict[str, Any]:
        """What host functions keep until the call, the start, or the row of the batch ends."""
        row = self.row if self.find_row is None else self.find_row()
        if self._keep is None or row != self._kept_row:
            self.end_session()
            self._keep, self._kept_row = {}, row
        return self._keep

    def output(self, row: int | None = None) -> str:
        """Return what the guest has written in the call, in the start, or in a row of the batch."""
        session = self.kept(KEY, row)
        return session.output if isinstance(session, Session) else ""

    def kept(self, key: str, row: int | None = None) -> object:
        """Return what host functions keep by a key in the call, the start, or a row; else None."""
        return None if self._keep is None or row != self._kept_row else self._keep.get(key)

    def end_session(self) -> None:
        """End what host functions keep; the application may get the last lines of output."""
        keep, self._keep = self._keep, None
        session = None if keep is None else keep.get(KEY)
        if isinstance(session, Session):
            reset = context_of_call.set(self._lease)
            try:
                with self.runner.meter(self.share):
                    session.end()
            finally:
                context_of_call.reset(reset)

    def log_line(self, stream: str, line: str) -> bool:
        """Log a line that the guest wrote; return False if it was dropped."""
        request = self._request
        return request is not None and self._log.output(
            request, self._origin_for(request), stream, line
        )

    def log_dropped(self, lines: int, size: int) -> None:
        """Log how many lines of the guest were dropped, and their bytes."""
        request = self._request
        if request is not None:
            self._log.output_dropped(request, self._origin_for(request), lines, size)

    def _origin_for(self, request: Request) -> Origin:
        if self._origin is None:
            self._origin = self._log.output_origin(request)
        return self._origin
