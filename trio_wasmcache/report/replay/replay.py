"""A log with `log_uses`, run through the cache's own policy, and compared with it step by step.

Some events made the policy do something; `driving` does it again. The others tell what it did, and
are compared with what it does now:

- `evicted`: who, why, in what order, all sizes. One that nothing led to may be for idleness: the
  cache's clock did that, and the books must agree that it was due.
- `acquired`: which instance, a hit or not, its uses, all sizes.
- `blocked`, `loaded`, `abandoned`: for what it waits, which instance, with what error.
- `recycled`: kept or not, all sizes; `closed`: all counts.

After a first disagreement the books may be off for good, so that one is the one to look at. Where
events are missing it ends: what comes after them can't be known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import Factory, define

from ..._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Closed as ClosedEvent,
    Event,
    Evicted,
    GroupClosed,
    GroupOpened,
    Left,
    Loaded,
    Opened,
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
from ..._core.policy.records import Closed, Request, Stage
from .books import Books, config_of, system_of
from .driving import Driver

# Disagreements that are kept word by word; the rest is counted.
MAX_KEPT = 50
COMPARED = (
    *("function", "arg_types", "group", "generation", "instance", "module_digest"),
    *("seat", "freed_bytes", "freed_code_bytes", "uses", "limit_bytes"),
    *("total_size_before_bytes", "total_size_after_bytes"),
    *("code_size_before_bytes", "code_size_after_bytes"),
)


class NotReplayable(Exception):
    """The log is not one that can be replayed; the message says why."""


def check_start(stamped: Stamped, what: str) -> Opened:
    """Return the first event of a log that tells of every use.

    Raises:
        NotReplayable: it is another one, has limits that no cache has, or the log does not tell of
            every use.
    """
    event = stamped.event
    if not isinstance(event, Opened):
        raise NotReplayable(
            f"the log begins with event {stamped.seq:,}: {what} needs it from its "
            "`wasmcache.opened` event on"
        )
    if not event.log_uses:
        raise NotReplayable(
            f"the log was written without log_uses, and {what} needs every use of the cache: open "
            "it with CacheConfig(log_uses=True)"
        )
    try:
        config_of(event)
    except (TypeError, ValueError) as error:
        raise NotReplayable(f"no cache has these limits: {error}") from None
    return event


@define(eq=False)
class Replay:
    """The log of one cache, fed event by event and in order."""

    events: int = 0
    """Those that were gone through."""
    leases: int = 0
    evictions: int = 0
    left_out: int = 0
    """Events after the first that is missing."""
    gap: tuple[int, int] | None = None
    """(first, last) of the sequence numbers that are missing where it ended."""
    complete: bool = False
    """Whether the log tells of the closing of the cache."""
    disagreements: list[tuple[int, str]] = Factory(list)
    """(sequence number, what is different)."""
    disagreed: int = 0
    """How many, also those that were not kept."""
    evicted: Callable[[Evicted], None] = lambda event: None
    """Told of each eviction that the policy decides on, in order."""
    _driver: Driver | None = None
    _now: Stamped | None = None  # the event that is gone through
    _pending: Stamped | None = None
    _last: int = 0
    _expected: deque[Evicted] = Factory(deque)

    def feed(self, event: Stamped) -> None:
        """Take the next event; it is gone through when the one after it is known.

        Raises:
            NotReplayable: it is the first, and not one that a replay can begin with.
        """
        if self._driver is None:
            self._open(event)
            return
        if self.gap is None and event.seq != self._last + 1:
            self.gap = self._last + 1, event.seq - 1
            self.finish()
        if self.gap is not None:
            self.left_out += 1
            return
        self._last = event.seq
        if self._pending is not None:
            self._go_through(self._pending, event)
        self._pending = event

    def finish(self) -> None:
        """Go through the last event: there are no more."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if isinstance(pending.event, Recycled) and not pending.event.kept:
            self.left_out += 1  # why it was not kept, the next event would tell
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

    def _open(self, stamped: Stamped) -> None:
        opened = check_start(stamped, "a replay")
        self._driver = Driver(Books(config_of(opened), system_of(opened)))
        self.events = 1
        self._last = stamped.seq

    # -- the frame around each event

    def _go_through(self, stamped: Stamped, following: Stamped | None) -> None:
        self.events += 1
        event = stamped.event
        if not isinstance(event, Evicted):
            self._settle(stamped.seq)
        self._now = stamped
        try:
            self._handle(event, stamped.at_seconds, following)
        except IllegalStepError as error:
            self._disagree(f"{_short(event)}: {error}")
        except (KeyError, AssertionError, ValueError, AttributeError, TypeError):
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
                driver.open_group(event)
            case GroupClosed():
                self._act(driver.close_group(event, now))
            case Registered():
                self._act(driver.register(event, now))
            case Removed():
                self._act(driver.remove(event, now))
            case Refused():
                self._act(driver.relieve(event, now))
            case Resized():
                self._act(driver.resize(event, now))
            case ClosedEvent():
                self._on_closed(event)

    def _act(self, step: Step | None) -> None:
        """Expect the evictions of a step of the policy to be what the log tells next."""
        if step is not None:
            for _, event in step.evicted:
                self._expected.append(event)
                self.evicted(event)

    def _settle(self, seq: int) -> None:
        """Disagree with a log that has not told all that the last step evicted by now."""
        for event in self._expected:
            self._note(
                seq,
                f"before this event, instance {event.instance} of {event.function} should have "
                f"been evicted ({event.reason.value}); the log has not got that",
            )
        self._expected.clear()

    def _note(self, seq: int, text: str) -> None:
        self.disagreed += 1
        if len(self.disagreements) < MAX_KEPT:
            self.disagreements.append((seq, text))

    def _disagree(self, text: str) -> None:
        assert self._now is not None
        self._note(self._now.seq, text)

    def _compare(self, event: Event, what: str, logged: object, booked: object) -> None:
        if logged != booked:
            text = f"{_short(event)}: {what} is {logged!r} in the log, {booked!r} by the books"
            self._disagree(text)

    def _compare_sizes(self, event: Acquired | Recycled) -> None:
        ledger = self.policy.residents.ledger
        self._compare(event, "total_size_bytes", event.total_size_bytes, ledger.total_size)
        self._compare(event, "code_size_bytes", event.code_size_bytes, ledger.used)

    # -- what makes the policy do something

    def _on_loaded(self, event: Loaded, now: float) -> None:
        request = self._driven.requests[event.request]
        instance = request.instance
        assert instance is not None
        self._compare(event, "the instance", event.instance, instance.number)
        self._compare(event, "module_loaded", event.module_loaded, instance.loads_module)
        self._compare(event, "seat", event.seat, instance.seat)
        self._act(self._driven.loaded(event, now))

    def _on_abandoned(self, event: Abandoned, now: float) -> None:
        if event.request is None:
            self._driven.end_token_wait(event.task)
            return
        request = self._driven.requests[event.request]
        self._compare(event, "the error", event.error, _booked_error(request, event.error))
        self._act(self._driven.abandon(event, now))

    def _on_recycled(self, event: Recycled, now: float, following: Stamped | None) -> None:
        request = self._driven.requests[event.request]
        instance = request.instance
        assert instance is not None
        self._compare(event, "the instance", event.instance, instance.number)
        told = request in self._driven.granted
        self._compare(event, "told to be acquired", told, True)
        # Whether a call failed, only the cache knows; other reasons are the policy's.
        spoilt = following is not None and is_end_of_spoilt(event, following.event)
        self._act(self._driven.recycle(event, now, Reason.CORRUPTED if spoilt else None))
        self._compare(event, "kept", event.kept, instance.state is not State.CLOSED)
        self._compare_sizes(event)

    # -- what tells what it did

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
        if not self._expected and event.reason is Reason.IDLE:
            self._act(self._driven.expire(now))
        if not self._expected:
            self._disagree(
                f"evicted: instance {event.instance} of {event.function} went "
                f"({_reason(event)}); by the books nothing had to go"
            )
            return
        booked = self._expected.popleft()
        self._compare(event, "reason", _reason(event), booked.reason.value)
        for name in COMPARED:
            self._compare(event, name, getattr(event, name), getattr(booked, name))

    def _on_closed(self, event: ClosedEvent) -> None:
        policy = self.policy
        self.complete = True
        for name in ("hits", "misses", "blocks"):
            self._compare(event, name, getattr(event, name), getattr(policy, name))
        evictions = sum(policy.residents.evictions.values())
        self._compare(event, "evictions", event.evictions, evictions)


def is_end_of_spoilt(recycled: Recycled, following: Event) -> bool:
    """Whether the event after a `recycled` says that a call had failed: its instance goes."""
    return (
        isinstance(following, Evicted)
        and following.reason is Reason.CORRUPTED
        and following.instance == recycled.instance
    )


def _short(event: Event) -> str:
    return event.name.removeprefix("wasmcache.")


def _reason(event: Evicted) -> str:
    """Return the reason in a word, also one that this version does not know."""
    return str(getattr(event.reason, "value", event.reason))


def _booked_error(request: Request, logged: str) -> str:
    """Return the error that an acquire ends with by the books; any, where they can't say."""
    if request.error is not None:
        error = type(request.error)
        return "ClosedResourceError" if error is Closed else error.__name__
    match request.stage:
        case Stage.LOADING:
            return logged
        case Stage.GRANTED:
            return "ClosedResourceError"
        case _:
            return "Cancelled"
