"""From a request to an instance: waiting until it is granted, loading it if there is none idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ._core.errors import GuestError, LinkError, LoadError, WasmCacheError
from ._core.events import Blocked, Failed, Loaded
from ._core.records import Closed, Request, Stage
from ._engine.seam import GuestInstance
from ._group import closed_group
from ._runner import Job
from ._shell import Shell, describe

if TYPE_CHECKING:
    from ._group import SchedulingGroup
    from ._lease import Lease
    from ._registry import Registered


async def settle(shell: Shell, group: SchedulingGroup, request: Request) -> None:
    """See `request` through until it is granted; afterwards it has an instance.

    **Checkpoint:** if it has to wait or load, maybe.
    **Cancellation:** the request has ended, and all it took is given back.

    Raises:
        WasmCacheError: what ended the request.
        trio.ClosedResourceError: the group or the cache was closed.
    """
    while request.stage is not Stage.GRANTED:
        if request.stage is Stage.LOADING:
            await _load(shell, group, request)
        elif request.stage is Stage.ENDED:
            raise _ended(group, request)
        else:
            await _wait(shell, request)


async def _wait(shell: Shell, request: Request) -> None:
    def abort(_: RaiseCancelT) -> Abort:
        request.sleeper = None
        shell.act(shell.policy.cancel(request, trio.current_time()))
        return Abort.SUCCEEDED

    tell_blocked(shell, request)
    request.sleeper = trio.lowlevel.current_task()
    await trio.lowlevel.wait_task_rescheduled(abort)


def tell_blocked(shell: Shell, request: Request) -> None:
    """With `log_uses`: note what the request waits for."""
    if shell.config.log_uses:
        lease: Lease = request.payload
        shell.tell(
            Blocked(
                **describe(request.entry.function),  # type: ignore[arg-type]
                group=request.entry.group.name,
                request=lease._number,
                waits_for=request.stage.value.removeprefix("waiting for "),
            )
        )


async def _load(shell: Shell, group: SchedulingGroup, request: Request) -> None:
    instance = request.instance
    assert instance is not None
    registered: Registered = instance.entry.function.payload
    lease: Lease = request.payload
    began = trio.current_time()
    native: GuestInstance | None = None
    try:
        module = await registered.slot.get()
        lease._check_open()
        config = shell.config
        native = module.instantiate(config.total_fuel, config.yield_fuel)
        instance.payload = native
        job = Job(native, group._share, registered.slot.hosts, lease, config.total_fuel)
        lease._job = job
        try:
            if not native.poll():
                job.charge()
                await shell.runner.drive(job)
            native.started()
        finally:
            lease._job = None
        lease._check_open()
    except BaseException as error:
        if request.stage is Stage.ENDED:
            # Closed meanwhile. The books are in order, but what was made since is ours to free.
            if native is not None:
                native.close()
            if instance.entry.function.module.users == 0:
                registered.slot.unload()
            raise
        if instance.payload is not None:
            native, instance.payload = instance.payload, None
            native.close()
        shell.act(shell.policy.failed(request, trio.current_time()))
        if not isinstance(error, Exception) or isinstance(error, trio.ClosedResourceError):
            raise
        problem = _explain(instance.entry.function.key, error)
        shell.tell(
            Failed(
                **describe(instance.entry.function),  # type: ignore[arg-type]
                group=group.name,
                instance=instance.number,
                error=type(problem).__name__,
                message=str(problem),
            )
        )
        if problem is error:
            raise
        raise problem from error
    instance.size = native.measure()
    now = trio.current_time()
    step = shell.policy.loaded(request, now)
    shell.tell(
        Loaded(
            **describe(instance.entry.function),  # type: ignore[arg-type]
            group=group.name,
            instance=instance.number,
            module_digest=instance.entry.function.module.digest,
            module_loaded=instance.loads_module,
            warmed=request.warm,
            load_seconds=now - began,
            code_bytes=instance.entry.function.module.code_size,
        )
    )
    shell.act(step)


def _explain(key: object, error: Exception) -> Exception:
    """What the caller gets for what went wrong while loading."""
    if isinstance(error, GuestError):
        return LoadError(f"{key} could not be instantiated: its start function failed: {error}")
    if isinstance(error, (LoadError, LinkError)):
        return type(error)(f"{key} could not be instantiated: {error}")
    if isinstance(error, WasmCacheError):
        return error
    return error


def _ended(group: SchedulingGroup, request: Request) -> BaseException:
    if request.error is None or isinstance(request.error, Closed):
        return closed_group(group)
    return request.error
