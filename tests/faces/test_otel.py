"""Spans and metrics by OpenTelemetry: what each sentence of their page says, read from the SDK."""

from __future__ import annotations

import asyncio
import functools
import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from counting import uncollected
from documents import STATISTICS, TEXTS
from kits import FakeKit, Kit, WasmtimeKit, add, add_asking
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags
from outside.support import DECLARED, HANG, opening

from trio_wasmcache import (
    CacheConfig,
    InstanceCache,
    TrapError,
    UnknownFunctionError,
    aio,
    blocking,
)
from trio_wasmcache.otel import LOOK_EVERY, METRICS, instrument

UNSAMPLED = NonRecordingSpan(SpanContext(1, 1, is_remote=False))
REMOTE = NonRecordingSpan(SpanContext(7, 7, True, TraceFlags(TraceFlags.SAMPLED)))


class Seen:
    """An SDK that keeps what it gets."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider(sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("test")

    def instrument(self, cache: Any) -> None:
        instrument(cache, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self) -> dict[str, ReadableSpan]:
        """{name: span}, of those that have ended; the last one of a name."""
        return {span.name: span for span in self._spans.get_finished_spans()}

    def names(self) -> list[str]:
        """The names of spans, as they ended."""
        return [span.name for span in self._spans.get_finished_spans()]

    def clear(self) -> None:
        self._spans.clear()

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """{metric: [(attributes, value)]}."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: [(dict(p.attributes or {}), p.value) for p in metric.data.data_points]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def seen() -> Iterator[Seen]:
    made = Seen()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def identity(span: Any) -> int:
    found: int = span.get_span_context().span_id
    return found


# -- spans


async def test_the_life_of_a_lease(kit: Kit, seen: Seen) -> None:
    """Registration, a cold acquire with its load, calls, a batch, and a warm acquire."""
    async with kit.open() as cache:
        seen.instrument(cache)
        with seen.tracer.start_as_current_span("request") as request:
            function = await add(cache, "f", kit.adding(1))
            async with cache.acquire("f", ("i64",)) as lease:
                assert trace.get_current_span() is request
                assert await lease.call(1) == 2
                fuel = lease.fuel_consumed
                assert await lease.call(2) == 3
                assert list(await lease.map([[1, 2, 3]])) == [2, 3, 4]
            async with cache.acquire("f"):
                pass
    spans = seen.spans()
    assert seen.names() == [
        *("register f(i64)", "load", "acquire f(i64)", "call f(i64)", "call f(i64)"),
        *("map f(i64)", "acquire f(i64)", "request"),
    ]
    assert {parent(span) for name, span in spans.items() if " " in name} == {identity(request)}
    finished = seen._spans.get_finished_spans()
    registered, load, cold, first, second, batch, warm, _ = finished
    assert parent(load) == identity(cold)
    facts = {"faas.name": "f(i64)", "wasmcache.group": "main", "faas.version": "1"}
    assert attributes(registered) == {
        **facts,
        "wasmcache.compile_seconds": attributes(registered)["wasmcache.compile_seconds"],
        "wasmcache.code_size": function.code_size,
        "wasmcache.module_digest": function.module_digest,
    }
    instance = {"faas.instance": attributes(cold)["faas.instance"]}
    granted = {**facts, **instance}
    assert attributes(cold) == {**granted, "faas.coldstart": True, "wasmcache.hit": False}
    assert attributes(warm) == {**granted, "faas.coldstart": False, "wasmcache.hit": True}
    called = {**facts, "faas.trigger": "other", "wasmcache.fuel": fuel}
    assert attributes(first) == {**called, "faas.coldstart": True}
    assert attributes(second) == {**called, "faas.coldstart": False}
    assert attributes(batch)["wasmcache.rows"] == 3
    assert all(span.status.status_code is StatusCode.UNSET for span in finished)


async def test_failures(kit: Kit, seen: Seen) -> None:
    """The type of the error is that of `stats`; batches say in which row, and how many failed."""
    async with kit.open() as cache:
        seen.instrument(cache)
        await add(cache, "trap", kit.trapping())
        with pytest.raises(UnknownFunctionError):
            async with cache.acquire("none"):
                pass
        async with cache.acquire("trap") as lease:
            with pytest.raises(TypeError):
                await lease.call("secret")
            misfit = seen.spans()["call trap(i64)"]
            with pytest.raises(TrapError, match="4242"):
                await lease.call(4242)
        failed = seen.spans()
        seen.clear()
        async with cache.acquire("trap") as lease:
            assert await lease.map([[1, 2]], on_error="null") == [None, None]
        async with cache.acquire("trap") as lease:
            with pytest.raises(TrapError):
                await lease.map([[4242, 2]])
        nulls, raised = (span for span in seen._spans.get_finished_spans() if "map" in span.name)
    assert attributes(failed["acquire none"])["error.type"] == "UnknownFunctionError"
    call = failed["call trap(i64)"]
    assert attributes(call)["error.type"] == "TrapError"
    assert call.status.status_code is StatusCode.ERROR
    assert attributes(misfit)["error.type"] == "TypeError"
    assert misfit.status.description is None  # it would be the argument
    assert "unreachable" in str(call.status.description)
    assert call.events == ()
    assert attributes(nulls)["wasmcache.row_errors"] == 2
    assert "error.type" not in attributes(nulls)
    assert attributes(raised)["wasmcache.row"] == 0
    assert "unreachable" in str(raised.status.description)
    for span in (call, raised):
        assert "4242" not in str(span.status.description)
    assert attributes(raised)["error.type"] == "TrapError"


async def test_waits_say_what_for_and_behind_whom(kit: Kit, seen: Seen) -> None:
    """A span for each wait, linked to the acquire that has the instance, cancelled or not."""
    async with kit.open() as cache:
        seen.instrument(cache)
        await add(cache, "f", kit.adding(1))

        async def acquire(scope: trio.CancelScope) -> None:
            with scope:
                async with cache.acquire("f"):
                    pass

        async with cache.acquire("f"), trio.open_nursery() as nursery:
            holder = seen.spans()["acquire f(i64)"]
            given_up = trio.CancelScope()
            nursery.start_soon(acquire, given_up)
            await trio.testing.wait_all_tasks_blocked()
            given_up.cancel()
            await trio.testing.wait_all_tasks_blocked()
            cancelled = seen.spans()
            seen.clear()
        async with cache.scheduling_group("g", capacity=1) as group:
            async with group.acquire("f"):
                group.start_soon(acquire_in, group)
                await trio.testing.wait_all_tasks_blocked()
        watcher: Any = cache._watcher
        assert watcher.holders == {}  # it keeps nothing of leases that have ended
    wait, acquire_span = cancelled["wait for an instance"], cancelled["acquire f"]
    assert [link.context.span_id for link in wait.links] == [identity(holder)]
    assert parent(wait) == identity(acquire_span)
    assert attributes(acquire_span)["wasmcache.waits_for"] == ("an instance",)
    assert attributes(acquire_span)["error.type"] == "Cancelled"
    assert acquire_span.status.description is None
    token = seen.spans()["wait for a token"]
    assert parent(token) == identity(seen.spans()["acquire f(i64)"])


async def acquire_in(group: Any) -> None:
    async with group.acquire("f"):
        pass


async def test_host_functions_run_in_the_span_of_their_call(kit: Kit, seen: Seen) -> None:
    """So what they trace belongs to it; also when the call began in its first slice."""
    inside: list[int] = []

    async def ask(value: int) -> int:
        inside.append(identity(trace.get_current_span()))
        return value

    async with kit.open() as cache:
        seen.instrument(cache)
        function = await add_asking(cache, kit, ask)
        await function.call(1)
    assert inside == [identity(seen.spans()["call asks(i64)"])]


@pytest.mark.parametrize("face", ["blocking", "aio"])
def test_calls_from_outside_belong_to_the_caller(fake: FakeKit, seen: Seen, face: str) -> None:
    """In the thread of the cache, each in its caller's context; and the metrics are read there."""

    def check(request: Any) -> None:
        for name in ("acquire f(i64)", "call f(i64)", "map f(i64)"):
            assert parent(seen.spans()[name]) == identity(request)
        assert seen.metrics()["wasmcache.call.count"] == [({"faas.name": "f(i64)"}, 2)]

    async def on_asyncio() -> None:
        async with aio._open(opening(fake)) as cache:
            seen.instrument(cache)
            f = await cache.register("f", fake.adding(1), **DECLARED)
            with seen.tracer.start_as_current_span("request") as request:
                assert await f.call(1) == 2
                await f.map([[1]])
            check(request)

    if face == "aio":
        asyncio.run(asyncio.wait_for(on_asyncio(), HANG))
    else:
        with blocking._open(opening(fake)) as cache:
            seen.instrument(cache)
            f = cache.register("f", fake.adding(1), **DECLARED)
            with seen.tracer.start_as_current_span("request") as request:
                assert f.call(1) == 2
                f.map([[1]])
            check(request)
    assert seen.metrics() == {}


def test_batches_of_a_thread_that_would_be_lent_an_instance(real: WasmtimeKit, seen: Seen) -> None:
    """Each has its span: nothing is lent."""
    with blocking._open(opening(real)) as cache:
        seen.instrument(cache)
        f = cache.register("f", real.adding(1), **DECLARED, concurrency=2)
        for _ in range(5):
            f.map([[1]])
    assert seen.names().count("map f(i64)") == 5


class Asked(Sampler):
    """A sampler that records nothing, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any
    ) -> Any:
        self.names.append(name)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "none"


async def test_which_uses_the_tracer_is_asked_about(fake: FakeKit) -> None:
    """None below a span that is not sampled, each below one that is, and each without a span."""
    sampler = Asked()
    seen = Seen(sampler)
    async with fake.open() as cache:
        seen.instrument(cache)
        function = await add(cache, "f", fake.adding(1))
        for span, names in (
            (UNSAMPLED, []),
            (REMOTE, ["acquire f(i64)", "call f(i64)"]),
            (trace.INVALID_SPAN, ["acquire f(i64)", "call f(i64)"]),
        ):
            sampler.names.clear()
            with trace.use_span(span):
                assert await function.call(1) == 2
            assert sampler.names == names
    assert seen.names() == []


async def test_a_global_provider_may_be_set_later(
    fake: FakeKit, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then nothing is recorded; soon afterwards everything is."""
    async with fake.open() as cache:
        instrument(cache, meter_provider=seen.meters)
        function = await add(cache, "f", fake.adding(1))
        await function.call(1)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.tracers)
        for _ in range(LOOK_EVERY):
            await function.call(1)
        seen.clear()
        await function.call(1)
    assert seen.names() == ["acquire f(i64)", "call f(i64)"]


async def test_a_failing_exporter_fails_no_use(
    fake: FakeKit, seen: Seen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged; the lease is held, and goes back."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("full")

    async with fake.open() as cache:
        seen.instrument(cache)
        function = await add(cache, "f", fake.adding(1))
        monkeypatch.setattr(SimpleSpanProcessor, "on_end", fail)
        assert await function.call(1) == 2
        monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", fail)
        assert await function.call(1) == 2
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert cache.stats().running_instances == 0
    assert "a span of trio_wasmcache could not be made" in caplog.text


# -- what it costs


def python_calls(work: Any) -> int:
    """Number of calls of Python functions of ours and of OpenTelemetry's, in a coroutine."""
    frames: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and ("trio_wasmcache" in name or "opentelemetry" in name):
            frames.append(frame.f_code.co_name)

    with uncollected():
        sys.setprofile(profile)
        try:
            with pytest.raises(StopIteration):
                work.send(None)
        finally:
            sys.setprofile(None)
    return len(frames)


async def test_a_use_that_is_not_recorded_costs_four_calls(fake: FakeKit) -> None:
    """The question, and OpenTelemetry's own way to the context; a cache without tracer: none."""
    counts = []
    for traced in (False, True):
        async with fake.open() as cache:
            if traced:
                Seen(ALWAYS_OFF).instrument(cache)
            await add(cache, "f", fake.adding(1))
            with trace.use_span(UNSAMPLED):
                async with cache.acquire("f") as lease:
                    await lease.call(1)
                    counts.append(python_calls(call_of(lease)))
    plain, traced_calls = counts
    assert traced_calls - plain <= 5


async def call_of(lease: Any) -> None:
    await lease.call(1)


async def test_a_cache_that_is_not_instrumented_has_plain_leases(fake: FakeKit) -> None:
    """And one that is, leases that are instances of `Lease`, too."""
    from trio_wasmcache import Lease

    async with fake.open() as cache:
        plain = type(cache.acquire("f"))
        assert plain.__base__ is Lease
        Seen().instrument(cache)
        lease = cache.acquire("f")
        assert isinstance(lease, Lease)
        assert not isinstance(lease, plain)
        assert repr(lease) == "<Lease of 'f' in group 'main': not entered>"


# -- metrics


async def test_metrics_are_those_of_stats(fake: FakeKit, seen: Seen) -> None:
    """All from one reading, under their attributes."""
    async with fake.open(CacheConfig(max_size=1000 * 65536)) as cache:
        seen.instrument(cache)
        function = await add(cache, "f", fake.adding(1))
        trapping = await add(cache, "trap", fake.trapping())
        await function.call(1)
        async with cache.acquire("f"), cache.scheduling_group("red", capacity=1) as red:
            async with red.acquire("f"):
                metrics, stats = seen.metrics(), cache.stats()
        with pytest.raises(TrapError):
            await trapping.call(1)
        later = seen.metrics()
        assert later["faas.errors"] == [({"faas.name": "trap(i64)", "error.type": "TrapError"}, 1)]
        assert later["wasmcache.evictions"] == [
            ({"wasmcache.eviction.reason": reason}, count)
            for reason, count in cache.stats().evictions.items()
        ]
    state = "wasmcache.instance.state"
    assert metrics["wasmcache.instance.count"] == [({state: "idle"}, 0), ({state: "used"}, 2)]
    assert metrics["wasmcache.instance.max"] == [({}, 4096)]
    assert metrics["faas.coldstarts"] == [
        ({"faas.name": "f(i64)"}, 2),
        ({"faas.name": "trap(i64)"}, 0),
    ]
    leases = {tuple(where.values()): count for where, count in metrics["wasmcache.lease.count"]}
    assert leases[("main", "hit")] == leases[("main", "miss")] == leases[("red", "miss")] == 1
    assert sum(leases.values()) == stats.hits + stats.misses
    assert metrics["wasmcache.code.limit"] == [({}, stats.max_code_size)]
    (waited,) = {sum(value for _, value in metrics["wasmcache.instance.wait_time"])}
    assert waited == pytest.approx(stats.wait.total / 1e6)
    assert seen.metrics() == {}


async def test_metrics_are_read_in_any_thread(fake: FakeKit, seen: Seen) -> None:
    """In the cache's own, between two steps; the statistics are taken once for all metrics."""
    async with fake.open() as cache:
        seen.instrument(cache)
        taken: list[int] = []
        count = cache._statistics.count
        cache._statistics.count = lambda: taken.append(threading.get_ident()) or count()  # type: ignore[func-returns-value,method-assign]
        here = seen.metrics()
        there = await trio.to_thread.run_sync(seen.metrics)
        assert here == there
        assert taken == [threading.get_ident()] * 2


async def test_a_reader_for_which_the_caches_thread_waits_gets_nothing(
    fake: FakeKit, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the SDK is shut down inside of the block: that must end, and what follows works."""
    monkeypatch.setattr("trio_wasmcache.otel.MAX_WAIT", 0)
    async with fake.open() as cache:
        seen.instrument(cache)
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(seen.metrics()))
        thread.start()
        thread.join()
        assert got == [{}]
        await trio.testing.wait_all_tasks_blocked()
        assert seen.metrics()["wasmcache.function.count"] == [({}, 0)]


async def test_a_cache_is_instrumented_once(fake: FakeKit, seen: Seen) -> None:
    """And only an open one; of two with one meter provider, each needs a label."""
    async with fake.open() as cache:
        seen.instrument(cache)
        with pytest.raises(RuntimeError, match="is watched already"):
            seen.instrument(cache)
        async with FakeKit().open() as other:
            with pytest.raises(ValueError, match=r"label.* of its own, open_cache\(label=\.\.\.\)"):
                seen.instrument(other)
            instrument(other, tracer_provider=seen.tracers, meter_provider=Seen().meters)
    with pytest.raises(trio.ClosedResourceError):
        seen.instrument(cache)
    with pytest.raises(TypeError, match=r"instrument\(\) takes an open cache, got 5"):
        instrument(5)  # type: ignore[arg-type]
    async with fake.open() as cache:
        seen.instrument(cache)
        assert seen.metrics()["wasmcache.function.count"] == [({}, 0)]


def test_every_metric_and_attribute_is_documented() -> None:
    """With the convention that it follows."""
    section = TEXTS[STATISTICS].partition("## OpenTelemetry")[2]
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in section] == []


# -- end to end


class Stub(BaseHTTPRequestHandler):
    """A collector that keeps what it is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.got.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


async def test_a_collector_gets_spans_and_metrics_by_otlp(fake: FakeKit) -> None:
    """Through the exporters that applications use, over HTTP."""
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    server = HTTPServer(("127.0.0.1", 0), Stub)
    server.got = []  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    try:
        spans = exporters.OTLPSpanExporter(f"{url}/traces")
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{url}/metrics"), export_interval_millis=float("inf")
        )
        meters = MeterProvider([reader], shutdown_on_exit=False)
        async with fake.open() as cache:
            instrument(cache, tracer_provider=tracers, meter_provider=meters)
            await (await add(cache, "f", fake.adding(1))).call(1)
            assert await trio.to_thread.run_sync(meters.force_flush)
        tracers.shutdown()
        meters.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    got: list[tuple[str, bytes]] = server.got  # type: ignore[attr-defined]
    names = [
        span.name
        for path, body in got
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names == ["register f(i64)", "load", "acquire f(i64)", "call f(i64)"]
    measured = {
        metric.name
        for path, body in got
        if path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"faas.coldstarts", "wasmcache.instance.count"} <= measured
    assert measured <= {metric.name for metric in METRICS}


def test_the_cache_of_another_run_is_refused(fake: FakeKit, seen: Seen) -> None:
    """As its statistics are."""
    caches: list[InstanceCache] = []

    async def main() -> None:
        async with fake.open() as cache:
            caches.append(cache)
            with pytest.raises(RuntimeError):
                await trio.to_thread.run_sync(seen.instrument, cache)

    trio.run(main)
