"""Runs a call again: gives the guest the same answers of its host as the log has.

No function of the application, of WASI or of an ABI is called: each call of a host function gets
the next answer of the log, whatever it asks for. If the guest asks another function than it did
then, or once more, the call ends with `DivergedError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NoReturn, final

from attrs import define

from .._core import errors
from .._core.answers import Answer, Grew, Invoked, Raised, Returned, Spent, Wrote
from .._core.errors import (
    ExitError,
    FuelExhaustedError,
    GuestError,
    MemoryLimitError,
    TrapError,
)
from .._core.wasm.reader import FuncType
from .._engine.base import GuestInstance, GuestMemory, HostCall
from .activity import Activity
from .host import AnyHost, TrampolineHost
from .start import Start


class DivergedError(Exception):
    """Raised in a call that asks its host for something else than it did then."""


class HostError(Exception):
    """Raised for an exception of the application that a host function raised then."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        """Type of the exception."""


@final
class Player:
    """Answers for the host functions of one cache."""

    def __init__(self) -> None:
        self._start: deque[Answer] = deque()
        self._call: deque[Answer] = deque()
        self.unused = 0
        """Number of answers that the guest has not asked for, once `end` was called."""

    def begin(self, start: Sequence[Answer], call: Sequence[Answer]) -> None:
        """Have the next start, and the next call, get these answers."""
        self._start, self._call = deque(start), deque(call)

    def end(self) -> None:
        """Note what the guest did not ask for."""
        self.unused = len(self._start) + len(self._call)

    def wrap(self, hosts: Sequence[AnyHost], names: Sequence[str]) -> tuple[AnyHost, ...]:
        """Return what takes the places of the host functions of a module."""
        return tuple(
            host if isinstance(host, TrampolineHost) else PlayedHost(host, index, name, self)
            for index, (host, name) in enumerate(zip(hosts, names, strict=True))
        )

    def watched(self, native: GuestInstance) -> GuestMemory | None:
        """Return the memory of an instance."""
        return native.memory

    def next(self, index: int, name: str, call: HostCall) -> Answer:
        """Return the answer to a call of a host function.

        Raises:
            DivergedError: the log has none, or one of another function.
        """
        answers = self._start if isinstance(call.caller, Start) else self._call
        if not answers:
            raise DivergedError(f"it called {name}, which it did not in the log")
        answer = answers.popleft()
        if answer.host != index:
            raise DivergedError(f"it called {name} where it called another function in the log")
        return answer


@final
@define(eq=False)
class PlayedHost:
    """A host function for which the log answers."""

    host: AnyHost
    index: int
    """Position among the host functions of the module."""
    name: str
    player: Player
    serve_alone: None = None

    @property
    def type(self) -> FuncType:
        """Type of the function."""
        return self.host.type

    def misfit(self, wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return self.host.misfit(wanted)

    def serve(self, call: HostCall) -> Any:
        """Answer a call as in the log."""
        answer = self.player.next(self.index, self.name, call)
        if any(isinstance(one, Invoked) for one in answer.operations):
            return self._serve_async(call, answer)
        for one in answer.operations:
            self._do(call, one)
        return self._end(answer)

    async def _serve_async(self, call: HostCall, answer: Answer) -> tuple[object, ...]:
        for one in answer.operations:
            if not isinstance(one, Invoked):
                self._do(call, one)
                continue
            if not isinstance(call.caller, Activity) or call.invoke is None:
                raise DivergedError(f"{self.name} can't call {one.export} of the guest")
            try:
                await call.caller.invoke(one.export, one.values)
            except GuestError as error:
                outcome = answer.outcome
                if isinstance(outcome, Raised) and outcome.error != type(error).__name__:
                    self._end(answer)  # the host function raised something in its place
                raise
        return self._end(answer)

    def _do(self, call: HostCall, operation: object) -> None:
        memory = call.memory
        try:
            match operation:
                case Spent(fuel):
                    call.spend(fuel)
                case Wrote(at, data) if memory is not None:
                    memory.write(at, data)
                case Grew(pages) if memory is not None:
                    memory.grow(pages)
                case _:
                    raise DivergedError(f"{self.name} has no memory to write to")
        except MemoryLimitError:
            pass  # as then, which the answer takes into account
        except FuelExhaustedError:
            raise
        except IndexError:
            raise DivergedError(f"{self.name} wrote outside of the memory that it has") from None

    @staticmethod
    def _end(answer: Answer) -> tuple[object, ...]:
        outcome = answer.outcome
        if isinstance(outcome, Returned):
            return outcome.values
        if isinstance(outcome, Raised):
            _raise(outcome)
        raise DivergedError("the guest had failed in an export that the host called")


_KINDS: Final[dict[str, type[GuestError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, GuestError)
}


def _raise(outcome: Raised) -> NoReturn:
    """Raise what a host function raised."""
    kind = _KINDS.get(outcome.error)
    if kind is TrapError:
        raise TrapError("as in the log", code=str(outcome.detail or ""))
    if kind is ExitError:
        status = outcome.detail if isinstance(outcome.detail, int) else -1
        raise ExitError("as in the log", status=status)
    if kind is not None:
        raise kind("as in the log")
    raise HostError(outcome.error)
