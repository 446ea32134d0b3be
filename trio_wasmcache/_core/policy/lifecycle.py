"""The life of one instance as a table: which step may follow which.

Two rules:

1. Every change of an instance's state is made by `step`, except in the fast path of a hit
   (`Policy.hit` and `rest`), which writes the same transitions inline.
2. A step that the table does not name raises `IllegalStepError` and changes nothing.

A seat has the same life: it is idle while it waits in the cache, loading while an instance is
made for a lease, and running while the lease uses that instance. If no instance can be made, it is
idle again.
"""

from __future__ import annotations

import enum


# Both are looked up on every hit. As strings they have the hash of a string; that of a plain enum
# is a function in Python.
class State(str, enum.Enum):  # noqa: UP042
    """Where an instance is in its life."""

    ABSENT = "absent"
    LOADING = "loading"
    RUNNING = "running"
    IDLE = "idle"
    CLOSED = "closed"


class Action(str, enum.Enum):  # noqa: UP042
    """A step in the life of an instance."""

    LOAD = "load"
    LOADED = "loaded"
    WARMED = "warmed"
    ACQUIRE = "acquire"
    TAKE = "take"
    LEAVE = "leave"
    RECYCLE = "recycle"
    DROP = "drop"
    EVICT = "evict"


# For the steps of every hit: see `records.NEW`.
LOADING, RUNNING, IDLE = State.LOADING, State.RUNNING, State.IDLE
ACQUIRE, RECYCLE = Action.ACQUIRE, Action.RECYCLE

# {state: {action: next state}}; all others are illegal.
TRANSITIONS: dict[State, dict[Action, State]] = {
    State.ABSENT: {Action.LOAD: State.LOADING},
    State.LOADING: {
        Action.LOADED: State.RUNNING,
        Action.WARMED: State.IDLE,
        Action.LEAVE: State.IDLE,
        Action.DROP: State.CLOSED,
    },
    State.RUNNING: {Action.RECYCLE: State.IDLE, Action.DROP: State.CLOSED},
    State.IDLE: {
        Action.ACQUIRE: State.RUNNING,
        Action.TAKE: State.LOADING,
        Action.EVICT: State.CLOSED,
    },
    State.CLOSED: {},
}


class IllegalStepError(RuntimeError):
    """A bug in the caller: the instance's state does not allow this step."""


def step(state: State, action: Action) -> State:
    """Return the state after `action`; raise `IllegalStepError` if the table has none."""
    try:
        return TRANSITIONS[state][action]
    except KeyError:
        raise IllegalStepError(f"can't {action.value} an instance that is {state.value}") from None
