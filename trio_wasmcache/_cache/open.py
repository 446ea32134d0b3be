"""Opens a cache for the length of a block: builds its parts, and closes them in order."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from .._core.config import CacheConfig, takes_config
from .._core.text import shown
from .._core.tiers import TIERED, tiers_of
from .._engine.base import Engine
from .._gil import check_gil
from .._ki import ki_safe_contextmanager
from .._log import LogWriter, ThreadedLogWriter, check_label, check_logger
from .._owner import check_trio
from .._pool.pool import Pool
from .._public import made, public
from .._runtime.call import CallRecorder
from .._threads import importing, run_in_thread
from .cache import InstanceCache
from .parts import Parts

# Seconds to wait for another process that compiles the same module, beyond its CPU time.
COMPILE_SLACK = 5.0


@public
@ki_safe_contextmanager
@takes_config
async def open_cache(
    config: CacheConfig | None = None, *, logger: object = None, label: str = ""
) -> AsyncIterator[InstanceCache]:
    """Open a cache for the length of a block.

    .. code-block::

        async with trio_wasmcache.open_cache(CacheConfig(max_size=100 * MiB)) as cache:
            await cache.register("fib", wasm, args=("i64",), returns="i64")

    When the block ends, the cache gives no new leases, waiting acquires raise
    `trio.ClosedResourceError`, calls are stopped within a slice, all native memory is freed, and
    the log is flushed. An exception of the block is raised unchanged, not wrapped in a group.

    Args:
        config: the limits; `CacheConfig()` by default.
        logger: a structlog logger; ``structlog.get_logger("trio_wasmcache")`` by default. It is
            called from a thread of the cache's own.
        label: name of the cache in every event of its log and in its metrics, such as the name of
            the service and of the host; at most 100 printable characters.

    Raises:
        TypeError: `config` is not a `CacheConfig`, `logger` is no structlog logger, or `label` is
            no str.
        ValueError: `label` is too long, or can't be printed.
        CacheDirError: `cache_dir` can't be used.
        RuntimeError: no Trio task is running here (but another event loop, or none).

    **Checkpoint:** entering and leaving are checkpoints.
    **Cancellation:** the cache is closed all the same, also after Ctrl-C, however often; flushing
    the log is shielded, for at most `log_flush_timeout` seconds.
    """
    with importing:  # it may be the thread of a cache for other threads
        from .._engine.wasmtime.code_cache import CodeCache
        from .._engine.wasmtime.engine import WasmtimeEngine
        from .._engine.wasmtime.subprocess import SubprocessCompiler

    check_trio("open_cache")
    check_gil("open_cache")
    config = CacheConfig() if config is None else config
    if not isinstance(config, CacheConfig):
        raise TypeError(f"config must be a CacheConfig, got {shown(config)}")
    check_logger(logger)
    check_label(label)
    subprocess = code_cache = None
    if config.cache_dir is not None:
        code_cache = await run_in_thread(
            CodeCache,
            config.cache_dir,
            config.instance_stack_size,
            config.compile_seconds + COMPILE_SLACK,
            tiers_of(config.compiler),
            limiter=trio.CapacityLimiter(1),
        )
    if config.compile_memory is not None:
        subprocess = SubprocessCompiler(
            config.instance_stack_size,
            config.compile_memory,
            config.compile_seconds,
            config.cache_dir,
        )
    engine = WasmtimeEngine(config.instance_stack_size, subprocess, code_cache, config.compiler)
    del code_cache  # the engine owns it, and releases it when it is closed
    try:
        log = ThreadedLogWriter(logger, label)
    except BaseException:  # no thread could be started
        engine.close()
        raise
    async with open_with(config, engine, log) as cache:
        yield cache


@ki_safe_contextmanager
async def open_with(
    config: CacheConfig, engine: Engine, log: LogWriter, recorder: CallRecorder | None = None
) -> AsyncIterator[InstanceCache]:
    """Open a cache on any engine and any log, as `trio_wasmcache.testing` does.

    With a `recorder`, it answers for the host functions: see `playing`.

    **Checkpoint:** entering and leaving are checkpoints.
    **Cancellation:** as of `open_cache`.
    """
    failure: BaseException | None = None
    pool: Pool | None = None
    try:
        pool = Pool(config, engine, log, recorder)
        with trio.CancelScope() as ending:
            async with trio.open_nursery() as service:
                pool.journal.opened(config, engine.system)
                parts = Parts.make(pool, service)
                cache = made(InstanceCache, parts)
                service.start_soon(pool.evictor.run)
                if config.compiler == TIERED:
                    service.start_soon(parts.promoter.run_compiles)
                    service.start_soon(parts.promoter.run_upgrades)
                if config.log_uses:
                    service.start_soon(parts.snapshots.run)
                try:
                    await trio.lowlevel.checkpoint()
                    yield cache
                except BaseException as error:
                    # Kept aside, so that the nursery does not wrap it.
                    failure = error
                finally:
                    # All that is left ends at once, threads within a slice. A cancellation from
                    # outside must not end it before the books are in order.
                    ending.shield = True
                    await parts.close()
                    service.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Ctrl-C during closing is not wrapped in a group either.
        interrupts, others = group.split(KeyboardInterrupt)
        if interrupts is None or others is not None:
            raise
        failure = KeyboardInterrupt()
    finally:
        engine.close()
        if pool is not None:
            pool.owner.end()
        await log.close(config.log_flush_timeout)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
