"""Runs a log with `log_uses` through the cache's own policy, and compares the two step by step.

Some events made the policy take a step; `driving` repeats it. The others report results, which are
compared with those of the repeated steps:

- `evicted`: the instance, the reason, the order, all sizes. An eviction that no event led to may be
  for idleness: the cache's clock caused it, and the books must agree that it was due; or an
  instance was replaced in its lease, as a row of a batch failed.
- `acquired`: the instance, whether it is a hit, its uses, all sizes.
- `blocked`, `loaded`, `abandoned`, `preparation_ended`: what it waits for, the instance, the error.
- `overgrown`: the function, and what of it led to that.
- `recycled`: whether it is kept, all sizes; `closed`: all counts.

A log that has lost its beginning is replayed from a snapshot on; see `start`.

After the first disagreement the books may stay wrong, so that one should be examined. A replay ends
where events are missing: what follows cannot be known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import Factory, define

from ..._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Closed,
    Event,
    Evicted,
    GroupClosed,
    GroupOpened,
    GroupResized,
    Left,
    Loaded,
    Overgrown,
    PreparationAwaited,
    PreparationEnded,
    PreparationRequested,
    Profiled,
    Promoted,
    Reason,
    Recycled,
    Refused,
    Registered,
    Removed,
    Requested,
    Resized,
    Stamped,
)
from ..._core.policy.instances import Step
from ..._core.policy.lifecycle import IllegalStepError, State
from ..._core.policy.policy import Policy
from ..._core.policy.records import Request, RequestClosed, Stage
from ..._core.snapshot import SnapshotPart
from .driving import Driver
from .start import Beginning, Fed, Start

# Disagreements that are kept as text; further ones are counted.
MAX_KEPT = 50
COMPARED = (
    *("function", "arg_types", "group", "generation", "instance", "module_digest"),
    *("seat", "freed_bytes", "freed_code_bytes", "uses", "limit_bytes"),
    *("total_size_before_bytes", "total_size_after_bytes"),
    *("code_size_before_bytes", "code_size_after_bytes"),
)


# Compared, too, in logs that have them.
ALL_COMPARED = (
    *COMPARED,
    *("for_function", "for_arg_types", "for_group", "for_request", "error"),
    *("replaced_by", "evictions"),
)


@define(eq=False)
class Replay(Fed):
    """A replay of the log of one cache, fed event by event and in order."""

    start: Start = Factory(lambda: Start("a replay"))
    events: int = 0
    """Number of events replayed."""
    leases: int = 0
    evictions: int = 0
    left_out: int = 0
    """Number of events after the first that is missing."""
    gap: tuple[int, int] | None = None
    """(first, last) of the missing sequence numbers at which the replay ended."""
    complete: bool = False
    """Whether the log contains the closing of the cache."""
    disagreements: list[tuple[int, str]] = Factory(list)
    """(sequence number, the difference)."""
    disagreed: int = 0
    """Number of disagreements, including those that were not kept."""
    evicted: Callable[[Evicted], None] = lambda _event: None
    """Called with each eviction that the policy decides on, in order."""
    _driver: Driver | None = None
    _compared: tuple[str, ...] = COMPARED
    _before: dict[str, int] = Factory(
        lambda: dict.fromkeys(("hits", "seat_hits", "misses", "blocks", "evictions"), 0)
    )
    """Counts at the beginning."""
    _seq: int = 0  # of the event that is replayed
    _pending: Stamped | None = None
    _last: int = 0
    _expected: deque[Evicted] = Factory(deque)
    _overgrown: list[Overgrown] = Factory(list)

    def take(self, event: Stamped) -> None:
        """Add the next event; it is replayed when the one after it is known."""
        if self.gap is None and event.seq != self._last + 1:
            self.gap = self._last + 1, event.seq - 1
            self.finish()
        if self.gap is not None:
            self.left_out += 1
            return
        self._last = event.seq
        if isinstance(event.event, SnapshotPart):
            self.events += 1  # it may stand between a step and its evictions
            return
        if self._pending is not None:
            self._go_through(self._pending, event)
        self._pending = event

    def finish(self) -> None:
        """Replay the last event, as there are no more."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if isinstance(pending.event, Recycled) and not pending.event.kept:
            self.left_out += 1  # the next event would have given the reason
            return
        self._go_through(pending, None)
        if self.complete:
            self._settle(pending.seq)

    @property
    def policy(self) -> Policy:
        """The policy as it is now."""
        return self._driven.policy

    @property
    def _driven(self) -> Driver:
        assert self._driver is not None
        return self._driver

    def begin(self, beginning: Beginning) -> None:
        """Begin with the books of then."""
        self._driver = Driver.begin(beginning)
        self.events = int(beginning.whole is None)
        self._last = beginning.seq
        if beginning.whole is not None:
            self._compared = ALL_COMPARED
            head = beginning.whole.head
            self._before = {name: getattr(head, name) for name in self._before}

    # -- the frame around each event

    def _go_through(self, stamped: Stamped, following: Stamped | None) -> None:
        self.events += 1
        event = stamped.event
        if not isinstance(event, Evicted | Overgrown):
            self._settle(stamped.seq)
        self._seq = stamped.seq
        try:
            self._handle(event, stamped.at_seconds, following)
        except IllegalStepError as error:
            self._disagree(f"{_short(event)}: {error}")
        except (KeyError, AssertionError, ValueError, AttributeError, TypeError, StopIteration):
            self._disagree(f"{_short(event)}: the books know nothing of it")

    def _handle(self, event: Event, now: float, following: Stamped | None) -> None:
        driver = self._driven
        match event:  # the frequent ones first
            case Requested():
                self._act(driver.acquire(event, now))
            case Acquired():
                self._on_acquired(event)
            case Recycled():
                self._on_recycled(event, now, following)
            case Loaded():
                self._on_loaded(event, now)
            case Evicted():
                self._on_evicted(event, now)
            case Blocked():
                self._on_blocked(event)
            case Abandoned():
                self._on_abandoned(event, now)
            case Left():
                self._act(driver.leave(event, now))
            case GroupOpened():
                # In a log of an older version an eviction does not say whose need it served.
                self._compared = COMPARED if event.reserved_size_bytes is None else ALL_COMPARED
                driver.open_group(event)
            case GroupResized():
                self._act(driver.resize_group(event, now))
            case GroupClosed():
                self._act(driver.close_group(event, now))
            case Registered():
                self._act(driver.register(event, now))
            case Promoted():
                self._act(driver.promote(event, now))
            case Profiled():
                self._act(driver.vary(event, now))
            case Overgrown():
                self._on_overgrown(event)
            case Removed():
                self._act(driver.remove(event, now))
            case PreparationRequested():
                self._act(driver.prepare(event, now))
            case PreparationAwaited():
                driver.await_preparation(event)
            case PreparationEnded():
                self._on_preparation_ended(event, now)
            case Refused():
                self._act(driver.relieve(event, now))
            case Resized():
                self._act(driver.resize(event, now))
            case Closed():
                self._on_closed(event)

    def _act(self, step: Step | None) -> None:
        """Expect the evictions of a step of the policy to follow in the log."""
        if step is not None:
            for _, event in step.evicted:
                self._expected.append(event)
                self.evicted(event)
            self._overgrown += [event for _, event in step.overgrown]

    def _settle(self, seq: int) -> None:
        """Note a disagreement for each expected eviction that the log does not have by now."""
        for event in self._expected:
            self._note(
                seq,
                f"before this event, instance {event.instance} of {event.function} should have "
                f"been evicted ({event.reason.value}); the log has not got that",
            )
        self._expected.clear()
        for grown in self._overgrown:
            self._note(
                seq,
                f"before this event, resets of {grown.function} should have been given up; the "
                "log has not got that",
            )
        self._overgrown.clear()

    def _note(self, seq: int, text: str) -> None:
        self.disagreed += 1
        if len(self.disagreements) < MAX_KEPT:
            self.disagreements.append((seq, text))

    def _disagree(self, text: str) -> None:
        self._note(self._seq, text)

    def _compare(self, event: Event, what: str, logged: object, booked: object) -> None:
        if logged != booked:
            text = f"{_short(event)}: {what} is {logged!r} in the log, {booked!r} by the books"
            self._disagree(text)

    def _compare_sizes(self, event: Acquired | Recycled) -> None:
        ledger = self.policy.instances.ledger
        self._compare(event, "total_size_bytes", event.total_size_bytes, ledger.total_size)
        self._compare(event, "code_size_bytes", event.code_size_bytes, ledger.used)

    # -- events that repeat a step of the policy

    def _on_loaded(self, event: Loaded, now: float) -> None:
        if event.promoted:
            self._on_upgraded(event, now)
            return
        request = self._driven.requests[event.request]
        instance = request.held
        self._compare(event, "the instance", event.instance, instance.number)
        self._compare(event, "module_loaded", event.module_loaded, instance.loads_module)
        self._compare(event, "seat", event.seat, instance.seat)
        self._act(self._driven.loaded(event, now))

    def _on_upgraded(self, event: Loaded, now: float) -> None:
        done = self._driven.upgrade(event, now)
        if done is None:
            self._disagree(f"loaded: by the books no instance of {event.function} was wanted")
            return
        instance, step = done
        self._compare(event, "the instance", event.instance, instance.number)
        self._compare(event, "module_loaded", event.module_loaded, instance.loads_module)
        self._act(step)

    def _on_abandoned(self, event: Abandoned, now: float) -> None:
        if event.request is None:
            self._driven.end_token_wait(event.task)
            return
        request = self._driven.requests[event.request]
        self._compare(event, "the error", event.error, _booked_error(request, event.error))
        self._act(self._driven.abandon(event, now))

    def _on_recycled(self, event: Recycled, now: float, following: Stamped | None) -> None:
        request = self._driven.requests[event.request]
        instance = request.held
        self._compare(event, "the instance", event.instance, instance.number)
        acquired = request in self._driven.granted
        self._compare(event, "logged as acquired", acquired, True)
        # Only the cache knows whether a call failed; other reasons are the policy's.
        corrupted = following is not None and is_end_of_corrupted(event, following.event)
        self._act(self._driven.recycle(event, now, Reason.CORRUPTED if corrupted else None))
        self._compare(event, "kept", event.kept, instance.state is not State.CLOSED)
        self._compare_sizes(event)

    def _on_preparation_ended(self, event: PreparationEnded, now: float) -> None:
        request = self._driven.requests[event.request]
        booked = None if request.instance is None else request.instance.number
        self._compare(event, "the instance", event.instance, booked)
        if booked is None:
            wanted = _booked_error(request, event.error or "")
            self._compare(event, "the error", event.error, wanted)
        self._act(self._driven.end_preparation(event, now))

    # -- events that report results

    def _on_blocked(self, event: Blocked) -> None:
        if event.request is None:
            self._driven.wait_for_token(event)
            return
        booked = self._driven.requests[event.request].stage.value
        waits_for = booked.removeprefix("waiting for ")
        self._compare(event, "what it waits for", event.waits_for, waits_for)

    def _on_acquired(self, event: Acquired) -> None:
        request = self._driven.requests[event.request]
        instance = request.instance
        if request.stage is not Stage.GRANTED or instance is None:
            self._disagree(f"acquired: by the books this request is {request.stage.value}")
            return
        self.leases += not request.warm
        self._driven.granted.add(request)
        self._compare(event, "the instance", event.instance, instance.number)
        self._compare(event, "a hit", event.hit, request.hit)
        self._compare(event, "uses", event.uses, instance.uses)
        self._compare_sizes(event)

    def _on_evicted(self, event: Evicted, now: float) -> None:
        self.evictions += 1
        if self._expected:
            pass
        elif event.reason is Reason.IDLE:
            self._act(self._driven.expire(now))
        elif event.replaced_by is not None:
            self._act(self._driven.replace(event, now))
        if not self._expected:
            self._disagree(
                f"evicted: instance {event.instance} of {event.function} went "
                f"({_reason(event)}); by the books nothing had to go"
            )
            return
        booked = self._expected.popleft()
        self._compare(event, "reason", _reason(event), booked.reason.value)
        for name in self._compared:
            self._compare(event, name, getattr(event, name), getattr(booked, name))

    def _on_overgrown(self, event: Overgrown) -> None:
        if not self._overgrown:
            self._disagree(f"overgrown: by the books {event.function} was still to be reset")
            return
        booked = self._overgrown.pop(0)
        for name in ("function", "arg_types", "generation", "leases", "growths", "size_bytes"):
            self._compare(event, name, getattr(event, name), getattr(booked, name))

    def _on_closed(self, event: Closed) -> None:
        policy = self.policy
        self.complete = True
        for name in ("hits", "misses", "blocks"):
            booked = self._before[name] + getattr(policy, name)
            self._compare(event, name, getattr(event, name), booked)
        if event.seat_hits is not None:
            booked = self._before["seat_hits"] + policy.seat_hits
            self._compare(event, "seat_hits", event.seat_hits, booked)
        evictions = self._before["evictions"] + sum(policy.instances.evictions.values())
        self._compare(event, "evictions", event.evictions, evictions)


def is_end_of_corrupted(recycled: Recycled, following: Event) -> bool:
    """Whether the event after a `recycled` shows that the instance was dropped as corrupted."""
    return (
        isinstance(following, Evicted)
        and following.reason is Reason.CORRUPTED
        and following.instance == recycled.instance
    )


def _short(event: Event) -> str:
    return event.name.removeprefix("wasmcache.")


def _reason(event: Evicted) -> str:
    """Return the reason as a word, including one that this version does not know."""
    return str(getattr(event.reason, "value", event.reason))


def _booked_error(request: Request, logged: str) -> str:
    """Return the error of an acquire by the books, or the logged one where they do not know."""
    if request.error is not None:
        error = type(request.error)
        return "ClosedResourceError" if error is RequestClosed else error.__name__
    match request.stage:
        case Stage.LOADING:
            return logged
        case Stage.GRANTED:
            return "ClosedResourceError"
        case _:
            return "Cancelled"
