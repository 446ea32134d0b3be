"""An HTTP service whose tenants upload WebAssembly functions and call them.

    python examples/udf_service.py 8080

    curl -X PUT localhost:8080/acme -H 'content-type: application/json' -d '{"shares": 200}'
    curl -X PUT 'localhost:8080/acme/longest?args=i64&returns=i64' \\
         --data-binary @examples/udfs/collatz.wasm
    curl localhost:8080/acme/longest -H 'content-type: application/json' -d '{"args": [1000]}'
    curl localhost:8080/acme/longest -H 'content-type: application/json' \\
         -d '{"columns": [[10, 100, 1000]]}'

It runs until SIGTERM or Ctrl-C, and prints its address, then the cache's log, as JSON lines. Port 0
is any that is free. It listens on this machine only and asks nobody who they are: put what does
that in front of it.

Each tenant is a scheduling group: with instances of its own, at most so many of its calls at work
at the same time, and its share of the CPU. A group is a nursery, so it needs a task that stays in
it for as long as the tenant is there (`keep_tenant`). The server's own tasks are never inside of
it, which is why they ask for leases by `group.acquire`.
"""

import functools
import json
import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

import trio_wasmcache as wasm
from trio_wasmcache import CacheConfig, InstanceCache, MiB, SchedulingGroup

LIMITS = CacheConfig(
    total_fuel=200_000_000,  # a few tenths of a second of the CPU
    memory_limit=8 * MiB,
    max_wasm_size=1 * MiB,
    compile_memory=512 * MiB,  # its modules come from strangers
    offload_after=8,
)
CALL_SECONDS = 5.0  # for a call and its waiting
TENANTS, FUNCTIONS = 32, 16  # at most; functions are for each tenant
QUEUE = 64  # calls of a tenant that may wait for one of its tokens
GRACE_SECONDS = 1.0  # for requests under way at the end

# The first that fits. What a tenant's module does wrong is 422, what we lack 503.
STATUS: list[tuple[type[Exception], int]] = [
    (wasm.UnknownFunctionError, 404),
    (wasm.DuplicateFunctionError, 409),
    (wasm.ModuleTooLargeError, 413),
    (wasm.CodeMemoryError, 503),
    (wasm.DeadlockError, 503),
    (wasm.WasmCacheError, 422),  # a module that is refused, an instance or a call that failed
    (trio.ClosedResourceError, 503),  # the tenant goes, or the service does
]


@dataclass
class Tenant:
    """Who may upload and call; `group` is where it is done."""

    group: SchedulingGroup
    gone: trio.Event = field(default_factory=trio.Event)
    functions: dict[str, wasm.Function] = field(default_factory=dict)
    uploading: int = 0
    calls: int = 0


class Problem(Exception):
    """Told to the client, with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """The tenants of one cache, and what they may ask for."""

    def __init__(self, cache: InstanceCache, nursery: trio.Nursery) -> None:
        self.cache = cache
        self.nursery = nursery
        self.tenants: dict[str, Tenant] = {}
        self.opening: set[str] = set()

    def tenant(self, name: str) -> Tenant:
        try:
            return self.tenants[name]
        except KeyError:
            raise Problem(404, f"there is no tenant {name!r}") from None

    async def open_tenant(self, name: str) -> Response:
        options = await json_body(default={})
        capacity, shares = options.get("capacity", 4), options.get("shares", 100)
        if name in self.tenants or name in self.opening:
            raise Problem(409, f"there is a tenant {name!r} already")
        if len(self.tenants) + len(self.opening) >= TENANTS:
            raise Problem(503, f"there are {TENANTS} tenants already")
        self.opening.add(name)
        try:
            await self.nursery.start(self.keep_tenant, name, capacity, shares)
        except (TypeError, ValueError) as error:
            raise Problem(400, str(error)) from None
        finally:
            self.opening.discard(name)
        return answer({"tenant": name}, 201)

    async def keep_tenant(
        self, name: str, capacity: int, shares: int, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Stay in the tenant's group until it goes; what it had goes then, calls included."""
        async with self.cache.scheduling_group(name, capacity=capacity, shares=shares) as group:
            self.tenants[name] = tenant = Tenant(group)
            task_status.started()
            try:
                await tenant.gone.wait()
            finally:
                del self.tenants[name]
        for function in tenant.functions.values():
            self.cache.remove(function.name, function.args)

    async def close_tenant(self, name: str) -> Response:
        self.tenant(name).gone.set()
        return answer({"tenant": name})

    async def upload(self, name: str, function: str) -> Response:
        """The body is the module; arguments in the address say what its export takes and gives."""
        tenant = self.tenant(name)
        old = tenant.functions.get(function)
        replace = request.args.get("replace", "0") == "1"
        if old is None and len(tenant.functions) + tenant.uploading >= FUNCTIONS:
            raise Problem(409, f"{name!r} has {FUNCTIONS} functions already")
        args = tuple(filter(None, request.args.get("args", "").split(",")))
        if old is not None and old.args != args and replace:
            raise Problem(409, f"{function!r} takes {old.args}: delete it first")
        if old is not None and not replace:
            raise Problem(409, f"{name!r} has a function {function!r} already")
        tenant.uploading += 1
        try:
            made = await self.cache.register(
                f"{name}/{function}",
                await request.get_data(),
                args=args,
                returns=request.args.get("returns"),
                export=request.args.get("export", function),
                concurrency=2,
                replace=replace,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise Problem(400, str(error)) from None
        finally:
            tenant.uploading -= 1
        now = tenant.functions.get(function)
        # Of other arguments it is an overload: it took no one's place, and nobody would remove it.
        if tenant.gone.is_set() or (now is not None and (not replace or now.args != made.args)):
            self.cache.remove(made.name, made.args)
            raise Problem(409, f"{name!r} went, or had another such upload, meanwhile")
        tenant.functions[function] = made
        return answer({"function": function, "generation": made.generation}, 201)

    async def delete(self, name: str, function: str) -> Response:
        made = self.function(self.tenant(name), function)
        del self.tenant(name).functions[function]
        self.cache.remove(made.name, made.args)
        return answer({"function": function})

    def function(self, tenant: Tenant, name: str) -> wasm.Function:
        try:
            return tenant.functions[name]
        except KeyError:
            raise Problem(404, f"there is no function {name!r}") from None

    async def call(self, name: str, function: str) -> Response:
        """``{"args": [...]}`` for one call, ``{"columns": [[...], ...]}`` for one of each row."""
        tenant = self.tenant(name)
        made = self.function(tenant, function)
        body = await json_body()
        if not isinstance(body.get("args", body.get("columns")), list):
            raise Problem(400, 'the body must be {"args": [...]} or {"columns": [[...], ...]}')
        if tenant.calls >= QUEUE + tenant.group.limiter.total_tokens:
            raise Problem(429, f"{QUEUE} calls of {name!r} are waiting already")
        tenant.calls += 1
        try:
            with trio.fail_after(CALL_SECONDS):
                async with tenant.group.acquire(made.name, made.args) as lease:
                    if "args" in body:
                        result = await lease.call(*body["args"])
                    else:
                        result = await lease.map(body["columns"])
        except (TypeError, ValueError, OverflowError) as error:
            raise Problem(400, str(error)) from None
        except trio.TooSlowError:
            raise Problem(504, f"it took longer than {CALL_SECONDS:g} s") from None
        finally:
            tenant.calls -= 1
        return answer({"result": plain(result)})

    async def stats(self) -> Response:
        stats = self.cache.stats()
        numbers = "hits misses blocks calls evictions errors idle_instances running_instances"
        numbers += " waiting total_size code_size functions"
        tenants = {name: {"calls": tenant.calls} for name, tenant in self.tenants.items()}
        shown = {field: getattr(stats, field) for field in numbers.split()}
        return answer({**shown, "tenants": tenants})


def plain(value: Any) -> Any:
    """As JSON has it: columns are lists, and what is not a number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (int, str)):
        return value
    return [plain(one) for one in value]


def answer(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, default=dict), status, content_type="application/json")


async def json_body(default: dict[str, Any] | None = None) -> dict[str, Any]:
    raw = await request.get_data()
    if not raw and default is not None:
        return default
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem(400, "the body must be a JSON object")
    return body


async def read_body() -> None:
    """Before anything is answered: Hypercorn can lose a connection whose body comes after that."""
    await request.get_data()


async def explain(error: Exception) -> Response:
    """Every error as JSON with the status that it deserves; what is not foreseen is ours."""
    if isinstance(error, HTTPException):  # Quart's own, such as 413 for a body that is too large
        told = answer({"error": error.name, "message": error.description}, error.code or 500)
        if error.code in (408, 413):  # and the rest of it may still come
            told.headers["connection"] = "close"
        return told
    statuses = (status for kind, status in STATUS if isinstance(error, kind))
    status = error.status if isinstance(error, Problem) else next(statuses, 500)
    message = str(error) if status != 500 else "an error of the service"
    if status == 500:
        structlog.get_logger().error("service.failed", error=repr(error))
    return answer({"error": type(error).__name__, "message": message}, status)


def make_app(service: Service) -> QuartTrio:
    app = QuartTrio("udf_service")
    # A little more than the largest module, so that it is the cache that refuses those.
    app.config["MAX_CONTENT_LENGTH"] = LIMITS.max_wasm_size + 64 * 1024
    app.config["BODY_TIMEOUT"] = CALL_SECONDS
    app.before_request(read_body)
    app.errorhandler(Exception)(explain)
    for method, path, view in (
        ("GET", "/stats", service.stats),
        ("PUT", "/<name>", service.open_tenant),
        ("DELETE", "/<name>", service.close_tenant),
        ("PUT", "/<name>/<function>", service.upload),
        ("POST", "/<name>/<function>", service.call),
        ("DELETE", "/<name>/<function>", service.delete),
    ):
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])
    return app


@asynccontextmanager
async def told_to_stop() -> AsyncIterator[trio.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = trio.Event()

    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        yield stop
        nursery.cancel_scope.cancel()


async def main(port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = GRACE_SECONDS
    config.errorlog = None  # what it has to say is in our answers
    async with (
        told_to_stop() as stop,
        wasm.open_cache(LIMITS) as cache,
        trio.open_nursery() as tenants,
    ):
        app = make_app(Service(cache, tenants))
        async with trio.open_nursery() as server:
            run = functools.partial(serve, app, config, shutdown_trigger=stop.wait)
            (address,) = await server.start(run)
            structlog.get_logger().info("service.listening", address=address)
        # It has ended, as it was told to: nobody is served any more, and the tenants go.
        tenants.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        print(__doc__)
        sys.exit(0 if len(sys.argv) == 1 else 2)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(os.fdopen(os.dup(1), "w", buffering=1)),
    )
    trio.run(main, int(sys.argv[1]))
