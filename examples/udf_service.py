"""An HTTP service whose tenants upload WebAssembly functions and call them.

    python examples/udf_service.py 8080

    curl -X PUT localhost:8080/acme
    curl -X PUT 'localhost:8080/acme/longest?args=i64&returns=i64' \\
         --data-binary @examples/udfs/collatz.wasm
    curl localhost:8080/acme/longest -H 'content-type: application/json' -d '{"args": [1000]}'
    curl localhost:8080/acme/longest -H 'content-type: application/json' \\
         -d '{"columns": [[10, 100, 1000]]}'
    curl 'localhost:8080/acme/profile?seconds=10' > acme.html  # a flame graph

It runs until SIGTERM or Ctrl-C, and prints its address, then the cache's log, as JSON lines. Port 0
is any that is free. It listens on this machine only and asks nobody who they are: put what does
that in front of it.

Each tenant is a scheduling group: with instances of its own, at most so many of its calls at work
at the same time, and its share of the CPU. The service decides how many and which share (`PLANS`):
whatever a tenant sends is checked against the service's own limits, and a field or a value that is
none of those listed here is refused with 400. A group is a nursery, so it needs a task that stays
in it for as long as the tenant is there (`keep_tenant`). The server's own tasks are never inside of
it, which is why they ask for leases by `group.acquire`, and register by `group.start`.

Each request has a trace id: that of its header `traceparent`, or a new one. Every line of the log
about the request has it, and the answer has it in the header `x-trace-id`. So this explains one
request, with what it waited for and who evicted its instance:

    python -m trio_wasmcache report service.jsonl --where trace_id=4bf92f3577b34da6a3ce929d0e0e4736

Results have JSON as follows, within others, too:

| value | JSON |
|---|---|
| integer of up to 64 bits | number; it may be beyond the 53 bits that JavaScript's have |
| larger integer (`varint`) | string: decimal, or hexadecimal ("0x...") from 4,300 digits on |
| float | number, or "NaN", "Infinity", "-Infinity" |
| boolean, text, null | the same |
| `bytes`, `blob` | string: base64 |
| `decimal`, `uuid`, `timeuuid`, `inet` | string |
| `date`, `time` | string: "2026-02-03", "04:05:06.789000000" |
| `date` before year 1 or after year 9999 | number of days since 1970 |
| `timestamp` | string: "2026-02-03T04:05:06.789Z"; out of that range the number of milliseconds |
| `duration` | {"months": 1, "days": 2, "nanoseconds": 3} |
| list, tuple, set, several results, a column | array; a set in no order |
| map | object if all keys are text, else array of [key, value] |
| user type | object |
"""

import base64
import datetime
import decimal
import functools
import ipaddress
import json
import math
import os
import re
import secrets
import signal
import sys
import uuid
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
    max_result_size=1 * MiB,  # of text, six times as long in JSON; or 130,000 numbers
    max_wasm_size=1 * MiB,
    compile_memory=512 * MiB,  # its modules come from strangers
    offload_after=8,
    log_uses=True,  # 1 KB for each call, by which the log explains it
)
CALL_SECONDS = 5.0  # for a call and its waiting
UPLOAD_SECONDS = 60.0  # for registering, which may wait for others' compiling
TENANTS, FUNCTIONS = 32, 16  # at most; functions are for each tenant
UPLOADS = 4  # of a tenant at the same time
ARGUMENTS = 32  # of a function
TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C's traceparent
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of tenants and functions
QUEUE = 64  # calls of a tenant that may wait for one of its tokens
PROFILE_SECONDS = 60.0  # of a profile, at most
PROFILES = {"html": "text/html; charset=utf-8", "collapsed": "text/plain; charset=utf-8"}
GRACE_SECONDS = 1.0  # for requests under way at the end

# The first that fits. What a tenant's module does wrong is 422, what we lack 503.
STATUS: list[tuple[type[Exception], int]] = [
    (wasm.UnknownFunctionError, 404),
    (wasm.DuplicateFunctionError, 409),
    (wasm.ModuleTooLargeError, 413),
    (wasm.CodeMemoryError, 503),
    (wasm.DeadlockError, 503),
    (trio.BusyResourceError, 503),  # there is a profile of some tenant under way
    (wasm.WasmCacheError, 422),  # a module that is refused, an instance or a call that failed
    (MemoryError, 503),
    (trio.ClosedResourceError, 503),  # the tenant goes, or the service does
]


@dataclass(frozen=True)
class Plan:
    """What the service grants a tenant, which has no say in it."""

    capacity: int = 4
    """Calls at work at the same time."""
    shares: int = 100
    """Of the CPU."""


PLANS = {"acme": Plan(capacity=8, shares=200)}  # others have the usual one


@dataclass
class Tenant:
    """Who may upload and call; `group` is where it is done."""

    group: SchedulingGroup
    plan: Plan
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
        check_name("a tenant", name)
        check_fields("the body", await json_body(default={}), ())
        if name in self.tenants or name in self.opening:
            raise Problem(409, f"there is a tenant {name!r} already")
        if len(self.tenants) + len(self.opening) >= TENANTS:
            raise Problem(503, f"there are {TENANTS} tenants already")
        self.opening.add(name)
        try:
            await self.nursery.start(self.keep_tenant, name, PLANS.get(name, Plan()))
        finally:
            self.opening.discard(name)
        return answer({"tenant": name}, 201)

    async def keep_tenant(
        self, name: str, plan: Plan, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Stay in the tenant's group until it goes; what it had goes then, calls included."""
        granted = {"capacity": plan.capacity, "shares": plan.shares}
        async with self.cache.scheduling_group(name, **granted) as group:
            self.tenants[name] = tenant = Tenant(group, plan)
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
        check_name("a function", function)
        check_fields("the address", request.args, ("args", "returns", "export", "replace"))
        old = tenant.functions.get(function)
        if request.args.get("replace", "0") not in ("0", "1"):
            raise Problem(400, "replace must be 0 or 1")
        replace = request.args.get("replace") == "1"
        if tenant.uploading >= UPLOADS:
            raise Problem(429, f"{UPLOADS} uploads of {name!r} are under way already")
        if old is None and len(tenant.functions) + tenant.uploading >= FUNCTIONS:
            raise Problem(409, f"{name!r} has {FUNCTIONS} functions already")
        args = split_types(request.args.get("args", ""))
        if len(args) > ARGUMENTS:
            raise Problem(400, f"a function has at most {ARGUMENTS} arguments, not {len(args)}")
        if old is not None and old.args != args and replace:
            raise Problem(409, f"{function!r} takes {old.args}: delete it first")
        if old is not None and not replace:
            raise Problem(409, f"{name!r} has a function {function!r} already")
        tenant.uploading += 1
        try:
            register = functools.partial(
                self.cache.register,
                f"{name}/{function}",
                await request.get_data(),
                args=args,
                returns=request.args.get("returns"),
                export=request.args.get("export", function),
                concurrency=2,
                replace=replace,
            )
            made = await in_group(tenant, register)
        except (TypeError, ValueError, OverflowError) as error:
            raise Problem(400, str(error)) from None
        except trio.TooSlowError:
            raise Problem(504, f"it took longer than {UPLOAD_SECONDS:g} s") from None
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
        check_fields("the body", body, ("args", "columns"))
        if len(body) != 1 or not isinstance(body.get("args", body.get("columns")), list):
            raise Problem(400, 'the body must be {"args": [...]} or {"columns": [[...], ...]}')
        if tenant.calls >= QUEUE + tenant.plan.capacity:
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

    async def profile(self, name: str) -> Response:
        """A flame graph of what the tenant's functions do in the next seconds."""
        tenant = self.tenant(name)
        check_fields("the address", request.args, ("seconds", "form"))
        form = request.args.get("form", "html")
        if form not in PROFILES:
            raise Problem(400, f"form must be one of {', '.join(PROFILES)}")
        try:
            seconds = float(request.args.get("seconds", "10"))
            if not 0 < seconds <= PROFILE_SECONDS:
                raise ValueError
        except ValueError:
            raise Problem(400, f"seconds must be from 0 to {PROFILE_SECONDS:g}") from None
        found = await self.cache.profile(seconds, group=tenant.group)
        return Response(getattr(found, form)(), content_type=PROFILES[form])

    async def stats(self) -> Response:
        stats = self.cache.stats()
        numbers = "hits misses blocks calls evictions errors idle_instances running_instances"
        numbers += " waiting total_size code_size functions"
        tenants = {name: {"calls": tenant.calls} for name, tenant in self.tenants.items()}
        shown = {field: getattr(stats, field) for field in numbers.split()}
        return answer({**shown, "tenants": tenants})


async def in_group(tenant: Tenant, register: Any) -> wasm.Function:
    """Register as a task of the tenant's: compiling goes round the groups that ask for it."""

    async def task(*, task_status: trio.TaskStatus[wasm.Function]) -> None:
        task_status.started(await register())

    if tenant.gone.is_set():
        raise trio.ClosedResourceError("the tenant went")
    with trio.fail_after(UPLOAD_SECONDS):
        try:
            made: wasm.Function = await tenant.group.start(task)
        except RuntimeError:  # the group goes: nobody may start in it, or what did was cancelled
            if tenant.gone.is_set():
                raise trio.ClosedResourceError("the tenant went") from None
            raise
    return made


def check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise Problem(400, f"the name of {what} is 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-'")


def check_fields(where: str, given: Any, known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise Problem(400, f"{where} has {unknown[0][:40]!r}; known are: {', '.join(known) or '-'}")


def split_types(text: str) -> tuple[str, ...]:
    """At the commas that are not within <>."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(filter(None, parts))


def plain(value: Any) -> Any:
    """As JSON has it; see the table at the top."""
    kind = type(value).__name__
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return value
        return str(value) if value.bit_length() < 14_000 else hex(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):  # CQL's are UTC, and do not say so
        return value.isoformat(timespec="milliseconds") + "Z"
    texts = (decimal.Decimal, uuid.UUID, datetime.date, ipaddress.IPv4Address)
    if isinstance(value, (*texts, ipaddress.IPv6Address)) or kind == "Time":
        return str(value)
    if kind == "Date":  # the driver's, for what `datetime.date` can't hold
        return str(value) if "-" in str(value)[1:] else value.days_from_epoch
    if kind == "Duration":
        return {part: getattr(value, part) for part in ("months", "days", "nanoseconds")}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: plain(one) for key, one in value.items()}
        return [[plain(key), plain(one)] for key, one in value.items()]
    if hasattr(value, "_fields"):  # a named tuple: a user type
        return {name: plain(one) for name, one in zip(value._fields, value, strict=True)}
    if isinstance(value, (list, tuple, set, frozenset, memoryview)):
        return [plain(one) for one in value]
    raise Problem(422, f"a result of type {kind} has no JSON")


def answer(value: object, status: int = 200) -> Response:
    text = json.dumps(value, default=dict, allow_nan=False)
    return Response(text, status, content_type="application/json")


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


async def begin_trace() -> None:
    """Every event that this request causes has its trace id: the log merges what is bound here."""
    found = TRACE.fullmatch(request.headers.get("traceparent", ""))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(trace_id=found[1] if found else secrets.token_hex(16))


async def tell_trace(response: Response) -> Response:
    response.headers["x-trace-id"] = structlog.contextvars.get_contextvars().get("trace_id", "")
    return response


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
    app.before_request(begin_trace)
    app.before_request(read_body)
    app.after_request(tell_trace)
    app.errorhandler(Exception)(explain)
    for method, path, view in (
        ("GET", "/stats", service.stats),
        ("GET", "/<name>/profile", service.profile),
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
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(os.fdopen(os.dup(1), "w", buffering=1)),
    )
    trio.run(main, int(sys.argv[1]))
