"""From a request to an instance: waiting until it is granted, loading it if there is none idle."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ._capacity import GroupState
from ._core.errors import GuestError, LinkError, LoadError, WasmCacheError
from ._core.fair import BURST_FUEL
from ._core.records import GRANTED, Closed, Instance, Request, Stage
from ._core.uses import LOADS, microseconds
from ._engine.seam import UNDER_WAY, GuestInstance, NoMemoryError
from ._registry import INITIALIZE
from ._runner import Job
from ._shell import CLOSED, Shell

if TYPE_CHECKING:
    from ._lease import Lease
    from ._registry import Registered


# What making an instance costs beside its fuel: about 40 microseconds.
LOAD_FUEL = 40_000


async def grant(shell: Shell, group: GroupState, request: Request) -> None:
    """See a new `request` through until it is granted; afterwards it has an instance.

    **Checkpoint:** if it has to wait or load, maybe.
    **Cancellation:** the request has ended, and all it took is given back.

    Raises:
        WasmCacheError: what ended the request.
        trio.ClosedResourceError: the group or the cache was closed.
    """
    now = shell.now()
    shell.journal.requested(request, now)
    try:
        step = shell.policy.acquire(request, now)
    except WasmCacheError as error:
        shell.policy.note_error(request.entry, type(error).__name__)
        shell.journal.abandoned(request, type(error).__name__, now)
        raise
    if step is not None:
        shell.act(step, now)
    if request.stage is not GRANTED:
        try:
            await _see_through(shell, group, request)
        except BaseException as error:
            shell.policy.note_error(request.entry, type(error).__name__)
            raise


async def _see_through(shell: Shell, group: GroupState, request: Request) -> None:
    while request.stage is not Stage.GRANTED:
        if request.stage is Stage.LOADING:
            await _load(shell, group, request)
        elif request.stage is Stage.ENDED:
            if request.error is None or isinstance(request.error, Closed):
                raise shell.closed_error(group.record)  # who closed it has told the log
            shell.journal.abandoned(request, type(request.error).__name__, shell.now())
            raise request.error
        else:
            await _wait(shell, request)


async def _wait(shell: Shell, request: Request) -> None:
    def abort(_: RaiseCancelT) -> Abort:
        request.sleeper = None
        now = shell.now()
        shell.journal.abandoned(request, "Cancelled", now)
        shell.act(shell.policy.cancel(request, now), now)
        return Abort.SUCCEEDED

    shell.journal.blocked(request)
    request.sleeper = trio.lowlevel.current_task()
    await trio.lowlevel.wait_task_rescheduled(abort)


async def _load(shell: Shell, group: GroupState, request: Request) -> None:
    instance = request.instance
    assert instance is not None
    record = instance.entry.function
    began = shell.now()
    module = record.module
    needed = record.address_space + module.code_size, max(1, record.mappings + module.mappings)
    native: GuestInstance | None = None
    try:
        for attempt in itertools.count():
            try:
                native = await _make(shell, group, request, instance)
                break
            except NoMemoryError as error:
                if request.stage is Stage.ENDED:
                    raise
                shell.relieve(record.key, needed, error, attempt)
    except BaseException as error:
        if request.stage is Stage.ENDED:
            # Closed meanwhile. The books are in order, but what was made since is ours to free.
            if record.module.users == 0:
                record.payload.slot.unload()
            raise
        now = shell.now()
        problem = _explain(record.key, error)
        if isinstance(problem, Exception) and not isinstance(problem, trio.ClosedResourceError):
            shell.journal.failed(request, instance, problem, now)
        shell.journal.abandoned(request, type(problem).__name__, now)
        shell.act(shell.policy.failed(request, now), now)
        shell.evictor.expect_expiry()  # of a seat that was taken in vain
        if problem is error:
            raise
        raise problem from error
    assert native is not None
    instance.size = native.measure()
    now = shell.now()
    instance.entry.uses.add(LOADS, microseconds(now - began))
    seat = instance.seat
    step = shell.policy.loaded(request, now)
    shell.journal.loaded(request, instance, seat, began, now)
    shell.act(step, now)
    if isinstance(request.error, Closed):
        # Its group was closed meanwhile, and its lease would have been in the next pass.
        shell.journal.abandoned(request, CLOSED, now)


async def _make(
    shell: Shell, group: GroupState, request: Request, instance: Instance
) -> GuestInstance:
    """Load the code if need be, make an instance, and see it through its start."""
    registered: Registered = instance.entry.function.payload
    lease: Lease = request.payload
    module = registered.slot.loaded
    if module is None:
        module = await lease._unless_closed(registered.slot.get)
    if group.share.burst >= BURST_FUEL:
        await shell.runner.pass_turn(group.share)
        lease._check_open()
    config = shell.config
    lease._loading = registered
    native = module.instantiate(config.total_fuel, config.yield_fuel)
    instance.payload = native
    try:
        over = native.poll()
        burnt = config.total_fuel - native.fuel_left()
        group.share.charge(burnt)
        group.share.burst += LOAD_FUEL
        initialize = registered.slot.initialize
        if over and not initialize:
            native.started()
        else:
            lease._job = job = Job(
                native, group.share, registered.slot.hosts, lease, config.total_fuel, burnt
            )
            try:
                await _start(shell, job, native, over, initialize)
            finally:
                lease._job = None
        lease._check_open()
        if registered.resets:
            native.mark()
    except BaseException:
        # Whoever closed the group meanwhile has forgotten it, and could not close it.
        instance.payload = None
        native.close()
        raise
    return native


async def _start(
    shell: Shell, job: Job, native: GuestInstance, over: bool, initialize: bool
) -> None:
    """Finish the start function, and then run `_initialize`, as WASI asks of reactors."""
    if not over:
        await shell.runner.drive(job)
    native.started()
    if initialize:
        guest = native.function(INITIALIZE)
        job.burnt = 0
        over = guest.begin((), job.fuel) is not UNDER_WAY
        job.charge()
        if not over:
            await shell.runner.drive(job)
            guest.finish()


def _explain(key: object, error: BaseException) -> BaseException:
    """What the caller gets for what went wrong while loading."""
    if isinstance(error, GuestError) and getattr(error, "code", "") != "host":
        return LoadError(f"{key} could not be instantiated: its start function failed: {error}")
    if isinstance(error, GuestError):  # wasmtime's own: it got no memory, or no stack
        return LoadError(f"{key} could not be instantiated: {error}")
    if isinstance(error, (LoadError, LinkError)):
        return type(error)(f"{key} could not be instantiated: {error}")
    return error
