"""Traces and measures a cache by OpenTelemetry: spans of its uses, and metrics of its statistics.

Needs the extra ``trio_wasmcache[otel]``, which is OpenTelemetry's API; nothing else in the package
imports this file. The SDK, and what it exports to, are the application's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import Token
from typing import Any, TypeAlias, final

import trio
from attrs import frozen

from ._cache.cache import InstanceCache, parts_of, watch
from ._cache.watching import Facts, What
from ._core.metrics.stats import CacheStats, UseSummary
from ._core.text import printable, shown
from ._outside import OutsideCache, run_inside

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context, attach, detach, get_current
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import (
        Link,
        Span,
        SpanContext,
        Status,
        StatusCode,
        TraceFlags,
        TracerProvider,
    )
except ImportError as _error:
    raise ImportError(
        "trio_wasmcache.otel takes opentelemetry-api: pip install '.[otel]'"
    ) from _error

__all__ = ["instrument"]

SCOPE = "trio_wasmcache"
"""Name of the instrumentation scope."""
MAX_TEXT = 500
"""Characters of an error's message in the status of a span."""
MAX_NAME = 100
"""Characters of a function's name in the name of a span."""
LOOK_EVERY = 50
"""Uses after which a global tracer provider is looked for again, which takes a microsecond."""
MAX_WAIT = 5.0
"""Seconds for which reading the statistics in another thread waits for the cache's."""

_log = logging.getLogger(__name__)


def instrument(
    cache: InstanceCache | OutsideCache,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Make spans of the uses of a cache from now on, and metrics of its statistics.

    .. code-block::

        async with trio_wasmcache.open_cache(label="service") as cache:
            trio_wasmcache.otel.instrument(cache)

    Acquires, calls, batches and registrations become spans, whose parent is the caller's current
    span. A use for which the caller's span is not sampled is not shown to the tracer at all. The
    metrics are read when the SDK collects them, in any thread. Once the cache is closed, it reports
    none.

    A cache of `trio_wasmcache.blocking` or `trio_wasmcache.aio` can be instrumented in any thread.

    Args:
        cache: an open cache.
        tracer_provider: where the tracer comes from; None: the global one. If it is set later,
            spans are made from one of the next 50 uses on.
        meter_provider: where the meter comes from; None: the global one, also if it is set later.

    Raises:
        TypeError: `cache` is not a cache.
        RuntimeError: it is instrumented already; or this is not the Trio run of the cache, or a
            step of it is under way.
        ValueError: a cache with the same label is instrumented with the same meter provider.
        trio.ClosedResourceError: the cache is closed.
    """
    if isinstance(cache, OutsideCache):
        run_inside(
            cache, "instrument", lambda inner: _instrument(inner, tracer_provider, meter_provider)
        )
    elif isinstance(cache, InstanceCache):
        _instrument(cache, tracer_provider, meter_provider)
    else:
        raise TypeError(f"instrument() takes an open cache, got {shown(cache)}")


def _instrument(
    cache: InstanceCache,
    tracer_provider: TracerProvider | None,
    meter_provider: MeterProvider | None,
) -> None:
    cache.stats()  # raises where the token would be that of another run
    if parts_of(cache).pool.closed:
        raise trio.ClosedResourceError("instrument() takes an open cache, but it is closed")
    with _lock:
        measuring = _measuring_of(meter_provider)
        measuring.check_label(cache)
        watch(cache, _Tracing(tracer_provider, cache.label))
        measuring.add(_Source(cache))


# -- spans


@final
class _Tracing:
    """A `Watcher` that makes spans.

    Args:
        provider: where the tracer comes from; None: the global one.
        label: label of the cache.
    """

    def __init__(self, provider: TracerProvider | None, label: str) -> None:
        self.tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
        self.label = label
        self.holders: dict[object, SpanContext] = {}
        """{request that was granted: span of its acquire}, for links."""
        # The context that was looked at last, and what was found: contexts do not change.
        self._seen: Context | None = None
        self._wanted = False
        self._provider = provider
        self._idle = False  # whether the tracer records nothing, as there is no provider yet
        self._left = 0  # uses until the provider is looked for again
        self._find_provider()

    def wants(self) -> bool:
        """Return whether a span may be recorded here: the caller's is sampled, or there is none."""
        if self._idle:
            self._left -= 1
            if self._left or not self._find_provider():
                return False
        context = get_current()
        return self._wanted if context is self._seen else self._look(context)

    def _look(self, context: Context) -> bool:
        span = trace.get_current_span(context)
        parent = span.get_span_context()
        sampled = parent.trace_flags & TraceFlags.SAMPLED
        wanted = bool(sampled) or not parent.is_valid or span.is_recording()
        self._seen, self._wanted = context, wanted
        return wanted

    def _find_provider(self) -> bool:
        provider = trace.get_tracer_provider() if self._provider is None else self._provider
        self._idle = isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
        self._left = LOOK_EVERY
        return not self._idle

    def begin(self, what: What, name: object, args: object, group: str) -> _Spans:
        """Start a span, and make it the current one."""
        text = _name_of(name, args)
        attributes: dict[str, Any] = {"faas.name": text, "wasmcache.group": group}
        if self.label:
            attributes["wasmcache.label"] = self.label
        if what in ("call", "map"):
            attributes["faas.trigger"] = "other"
        spans = _Spans(self, what)
        with _quietly():
            spans.start(text, attributes)
        return spans

    def release(self, request: object) -> None:
        """Forget the span of a request."""
        self.holders.pop(request, None)


@final
class _Spans:
    """The span of one use, and those of its stages: a `watching.Use`."""

    __slots__ = ("_span", "_stage", "_token", "_tracing", "_waits", "_what")

    def __init__(self, tracing: _Tracing, what: What) -> None:
        self._tracing = tracing
        self._what = what
        self._span: Span = trace.INVALID_SPAN
        self._token: Token[Context] | None = None
        self._stage: Span | None = None
        self._waits: list[str] = []

    def start(self, function: str, attributes: Mapping[str, Any]) -> None:
        """Start the span. It is current until `end`, also if it is not recorded."""
        name = f"{self._what} {function}"
        self._span = self._tracing.tracer.start_span(name, attributes=attributes)
        self._token = attach(trace.set_span_in_context(self._span))

    def reach(self, stage: str, behind: Collection[object] = ()) -> None:
        """End the span of a stage, and start that of the next one."""
        if not self._span.is_recording():
            return
        with _quietly():
            self._end_stage()
            holders = self._tracing.holders
            links = [Link(holders[request]) for request in behind if request in holders]
            if stage != "load":
                self._waits.append(stage)
            name = stage if stage == "load" else f"wait for {stage}"
            self._stage = self._tracing.tracer.start_span(name, links=links)

    def hold(self, request: object) -> None:
        """Let spans of those that wait for the request link to this one."""
        if self._span.is_recording():
            self._tracing.holders[request] = self._span.get_span_context()

    def end(self, error: BaseException | None, facts: Facts) -> None:
        """End the span, with what is known by now."""
        span = self._span
        with _quietly():
            self._end_stage()
            if span.is_recording():
                key = facts.get("key")
                if key is not None:  # by now, also if the caller left out the types
                    span.update_name(f"{self._what} {key}")
                span.set_attributes(dict(_attributes(facts)))
                if self._waits:
                    span.set_attribute("wasmcache.waits_for", self._waits)
                if error is not None:
                    _describe(span, error)
                    span.set_status(Status(StatusCode.ERROR, self._description(error, facts)))
        with _quietly():
            span.end()
        # An abandoned coroutine is closed in the context of somebody else.
        if self._token is not None and not isinstance(error, GeneratorExit):
            detach(self._token)

    def _description(self, error: BaseException, facts: Facts) -> str | None:
        """Return why the use has failed, in words without arguments of a call."""
        if isinstance(error, (trio.Cancelled, GeneratorExit)):
            return None
        text = facts.get("reason") if self._what in ("call", "map") else str(error)
        return printable(text, MAX_TEXT) if text else None

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.end()
            self._stage = None


def _name_of(name: object, args: object) -> str:
    """Return the name of a function for people, from what a caller gave, which may be anything."""
    text = name if type(name) is str else shown(name)
    if type(args) in (tuple, list) and all(type(one) is str for one in args):  # type: ignore[attr-defined]
        text = f"{text}({', '.join(args)})"  # type: ignore[arg-type]
    return printable(text, MAX_NAME)


def _attributes(facts: Facts) -> Iterator[tuple[str, Any]]:
    """Return the attributes of a span."""
    key = facts.get("key")
    if key is not None:
        yield "faas.name", str(key)
    if "generation" in facts:
        yield "faas.version", str(facts["generation"])
    if "instance" in facts:
        yield "faas.instance", str(facts["instance"])
    if "cold" in facts:
        yield "faas.coldstart", facts["cold"]
    for name in NUMBERS:
        value = facts.get(name)
        if value is not None:
            yield f"wasmcache.{name}", value


NUMBERS = "request hit warm fuel rows row_errors compile_seconds code_size module_digest".split()
"""Facts that are attributes under their own names."""


def _describe(span: Span, error: BaseException) -> None:
    """Set the attributes that say how a use has failed."""
    span.set_attribute("error.type", type(error).__name__)
    row = getattr(error, "row", None)
    if isinstance(row, int):
        span.set_attribute("wasmcache.row", row)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Log exceptions of the SDK and of the application's parts of it: uses do not fail by them."""
    try:
        yield
    except Exception:
        _log.exception("a span of trio_wasmcache could not be made")


# -- metrics


@final
class _Source:
    """The statistics of one cache, for the threads of the SDK."""

    def __init__(self, cache: InstanceCache) -> None:
        self.cache = cache
        self._token = trio.lowlevel.current_trio_token()
        self._pool = parts_of(cache).pool

    @property
    def closed(self) -> bool:
        """Whether the cache is closed, or closing."""
        return self._pool.closed

    def read(self) -> CacheStats | None:
        """Return the statistics of this moment; None if the cache is closed.

        In another thread, this waits for the cache's; None if that takes longer than `MAX_WAIT`, as
        the cache's thread may be waiting for this one: for the end of the SDK's reader, say.
        """
        if threading.get_ident() == self._pool.thread:
            return self.cache.stats()
        found: list[CacheStats] = []
        done = threading.Lock()
        done.acquire()

        def read() -> None:
            try:
                if not self.closed:
                    found.append(self.cache.stats())
            finally:
                done.release()

        try:
            self._token.run_sync_soon(read)
        except trio.RunFinishedError:
            return None
        done.acquire(timeout=MAX_WAIT)
        return found[0] if found else None


@final
@frozen
class _Reading:
    """The statistics of one cache at one moment."""

    stats: CacheStats
    cache: InstanceCache


Attributes: TypeAlias = dict[str, str]
Values: TypeAlias = Iterable[tuple[float, Attributes]]


@final
@frozen
class _Metric:
    """A metric, and how it is computed from the statistics of a cache."""

    name: str
    unit: str
    description: str
    values: Callable[[_Reading], Values]
    falls: bool = False
    """Whether it goes up and down, and does not only count."""


def _one(get: Callable[[CacheStats], float]) -> Callable[[_Reading], Values]:
    return lambda reading: [(get(reading.stats), {})]


def _split(name: str, **gets: Callable[[CacheStats], float]) -> Callable[[_Reading], Values]:
    return lambda reading: [(get(reading.stats), {name: value}) for value, get in gets.items()]


def _by_group(get: Callable[[UseSummary], float]) -> Callable[[_Reading], Values]:
    return lambda reading: [
        (get(summary), {"wasmcache.group": group})
        for group, summary in reading.stats.per_group.items()
    ]


def _by_function(get: Callable[[UseSummary], float]) -> Callable[[_Reading], Values]:
    return lambda reading: [
        (get(summary), {"faas.name": function})
        for function, summary in reading.stats.per_function.items()
    ]


def _leases(reading: _Reading) -> Values:
    for group, uses in reading.stats.per_group.items():
        counts = {"hit": uses.hits - uses.seat_hits, "seat": uses.seat_hits, "miss": uses.misses}
        for origin, count in counts.items():
            yield count, {"wasmcache.group": group, "wasmcache.lease.origin": origin}


def _errors(reading: _Reading) -> Values:
    for function, uses in reading.stats.per_function.items():
        for error, count in uses.errors.items():
            yield count, {"faas.name": function, "error.type": error}


def _evictions(reading: _Reading) -> Values:
    for reason, count in reading.stats.evictions.items():
        yield count, {"wasmcache.eviction.reason": reason}


def _throttled(reading: _Reading) -> Values:
    for group, seconds in reading.stats.throttled_seconds.items():
        yield seconds, {"wasmcache.group": group}


def _throttled_waits(reading: _Reading) -> Values:
    for group, number in reading.stats.throttled_waits.items():
        yield number, {"wasmcache.group": group}


STATE = "wasmcache.instance.state"
METRICS = (
    _Metric(
        "wasmcache.instance.count",
        "{instance}",
        "Instances and seats, idle in the cache and used.",
        _split(STATE, idle=lambda it: it.idle_instances, used=lambda it: it.running_instances),
        falls=True,
    ),
    _Metric(
        "wasmcache.instance.max",
        "{instance}",
        "Limit of instances and seats: max_instances.",
        lambda reading: [(reading.cache.config.max_instances, {})],
        falls=True,
    ),
    _Metric(
        "wasmcache.instance.pending_requests",
        "{request}",
        "Acquires that wait for an instance or for capacity.",
        _one(lambda it: it.waiting),
        falls=True,
    ),
    _Metric(
        "wasmcache.instance.wait_time",
        "s",
        "Time from asking for an instance to having it, of all leases together.",
        _by_group(lambda it: it.wait.total / 1e6),
    ),
    _Metric(
        "wasmcache.instance.create_time",
        "s",
        "Time that making instances took, all together.",
        _by_group(lambda it: it.load.total / 1e6),
    ),
    _Metric(
        "wasmcache.instance.use_time",
        "s",
        "Length of leases that have ended, all together.",
        _by_group(lambda it: it.hold.total / 1e6),
    ),
    _Metric(
        "wasmcache.instance.creations",
        "{instance}",
        "Instances that were made.",
        _by_group(lambda it: it.load.count),
    ),
    _Metric(
        "wasmcache.lease.count", "{lease}", "Leases that were granted, by their origin.", _leases
    ),
    _Metric(
        "wasmcache.lease.blocks",
        "{acquire}",
        "Acquires that had to wait.",
        _by_group(lambda it: it.blocks),
    ),
    _Metric(
        "wasmcache.evictions", "{instance}", "Evicted instances and seats, by reason.", _evictions
    ),
    _Metric(
        "faas.coldstarts",
        "{coldstart}",
        "Leases for which an instance was loaded.",
        _by_function(lambda it: it.misses + it.seat_hits),
    ),
    _Metric("faas.errors", "{error}", "Acquires and calls that failed, by type.", _errors),
    _Metric(
        "wasmcache.call.count",
        "{call}",
        "Calls begun, including those that failed.",
        _by_function(lambda it: it.calls),
    ),
    _Metric(
        "wasmcache.call.run_time",
        "s",
        "Time that calls went on after their first slice, all together.",
        _by_function(lambda it: it.run.total / 1e6),
    ),
    _Metric(
        "wasmcache.call.fuel",
        "{unit}",
        "Fuel burnt by calls that are over.",
        _by_function(lambda it: it.fuel.total),
    ),
    _Metric(
        "wasmcache.compile_time",
        "s",
        "Time that compiling modules took.",
        _by_function(lambda it: it.compile.total / 1e6),
    ),
    _Metric(
        "wasmcache.promotions",
        "{function}",
        "Functions whose optimized code was made in the background.",
        _one(lambda it: it.promotions),
    ),
    _Metric(
        "wasmcache.throttled_time",
        "s",
        "Time that calls waited for the cpu_limit of their group.",
        _throttled,
    ),
    _Metric(
        "wasmcache.throttled_waits",
        "{wait}",
        "Waits of calls for the cpu_limit of their group.",
        _throttled_waits,
    ),
    _Metric(
        "wasmcache.memory.usage",
        "By",
        "What idle and used instances may touch.",
        _split(STATE, idle=lambda it: it.total_size, used=lambda it: it.running_size),
        falls=True,
    ),
    _Metric(
        "wasmcache.memory.limit",
        "By",
        "Limit for idle instances: max_size.",
        _one(lambda it: it.max_size),
        falls=True,
    ),
    _Metric(
        "wasmcache.code.usage",
        "By",
        "Code of loaded modules, and stacks of used instances.",
        _split(
            "wasmcache.code.kind",
            module=lambda it: it.module_code_size,
            stack=lambda it: it.stacks_size,
        ),
        falls=True,
    ),
    _Metric(
        "wasmcache.code.limit",
        "By",
        "Limit for both together: max_code_size.",
        _one(lambda it: it.max_code_size),
        falls=True,
    ),
    _Metric(
        "wasmcache.function.count",
        "{function}",
        "Registered functions.",
        _one(lambda it: it.functions),
        falls=True,
    ),
    _Metric(
        "wasmcache.log.lost_events",
        "{event}",
        "Events that the log dropped.",
        _one(lambda it: it.log_lost),
    ),
    _Metric(
        "wasmcache.output.dropped_lines",
        "{line}",
        "Lines of guests' output that were dropped.",
        _one(lambda it: it.output_dropped),
    ),
)
NAMES = frozenset(metric.name for metric in METRICS)


@final
class _Measuring:
    """The instruments of one meter provider, and the caches that they observe.

    An instrument of a name can be made only once, and can't be removed. All are read from the same
    statistics, which are taken when one of them is read for the second time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: list[_Source] = []
        self._readings: list[_Reading] = []
        self._asked = {*NAMES}  # metrics that were computed from these readings

    def make_instruments(self, meter: Meter) -> None:
        """Make all instruments."""
        for metric in METRICS:
            observe = functools.partial(self._observe, metric)
            if metric.falls:
                make: Callable[..., object] = meter.create_observable_up_down_counter
            else:
                make = meter.create_observable_counter
            make(metric.name, [observe], metric.unit, metric.description)

    def check_label(self, cache: InstanceCache) -> None:
        """Raise `ValueError` if another cache of its label is observed: they would be mixed up."""
        others = [source.cache for source in self._open() if source.cache is not cache]
        if any(other.label == cache.label for other in others):
            raise ValueError(
                f"a cache labelled {cache.label!r} is instrumented with the same meter provider: "
                "give each a label of its own, open_cache(label=...)"
            )

    def add(self, source: _Source) -> None:
        """Observe a cache until it is closed."""
        with self._lock:
            self._sources.append(source)

    def _open(self) -> list[_Source]:
        with self._lock:
            self._sources = [source for source in self._sources if not source.closed]
            return self._sources

    def _observe(self, metric: _Metric, _options: CallbackOptions) -> Iterable[Observation]:
        for reading in self._read(metric):
            label = reading.cache.label
            of_cache = {"wasmcache.label": label} if label else {}
            for value, attributes in metric.values(reading):
                yield Observation(value, {**of_cache, **attributes})

    def _read(self, metric: _Metric) -> list[_Reading]:
        with self._lock:
            if metric.name not in self._asked:
                self._asked.add(metric.name)
                return self._readings
        # Without the lock, for which the cache's thread may wait.
        read = [(source.read(), source.cache) for source in self._open()]
        readings = [_Reading(stats, cache) for stats, cache in read if stats is not None]
        with self._lock:
            self._readings, self._asked = readings, {metric.name}
        return readings


_lock = threading.Lock()
_measuring: weakref.WeakKeyDictionary[MeterProvider, _Measuring] = weakref.WeakKeyDictionary()
_global: list[_Measuring] = []
"""That of the global meter provider, which may be set when there are instruments already."""


def _measuring_of(provider: MeterProvider | None) -> _Measuring:
    """Return the instruments of a meter provider, which are made if there are none."""
    current = metrics.get_meter_provider()
    key = current if provider is None else provider
    found = _measuring.get(key)
    if found is None and key is current and _global:
        found = _global[0]
    if found is None:
        found = _Measuring()
        found.make_instruments(metrics.get_meter(SCOPE, meter_provider=provider))
        if key is current:
            _global.append(found)
    _measuring[key] = found
    return found
