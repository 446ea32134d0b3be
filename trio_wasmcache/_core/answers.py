"""The answers of the host in one call, to be given again: see `CacheConfig.log_values`.

An answer is what a host function did to the guest before it returned or raised: fuel that it
took, bytes that it wrote to memory, pages that it added, exports that it had the guest call. A
guest sees nothing else of its host, so the same answers make it go the same way again.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, final

from attrs import Factory, define, frozen

from .tagged import (
    Json,
    UnreadableError,
    decode_bytes,
    decode_float,
    encode_bytes,
    encode_float,
)

MAX_CALL: Final = 64 * 1024
"""Characters of all values of one call in the log, at most."""
MAX_START: Final = 8 * 1024
"""Characters of the answers to the start of an instance, which are kept as long as the instance."""
OP_SIZE: Final = 24
"""Characters that an operation takes beside its data, about."""

Number: TypeAlias = int | float
"""A wasm value."""


@frozen
class Spent:
    """The host took fuel of the call."""

    fuel: int


@frozen
class Wrote:
    """The host wrote to the guest's memory."""

    at: int
    data: bytes


@frozen
class Grew:
    """The host added pages to the guest's memory, or tried to."""

    pages: int


@frozen
class Invoked:
    """The host had the guest call an export, or tried to."""

    export: str
    values: tuple[Number, ...]


@frozen
class Returned:
    """The host function returned these wasm values."""

    values: tuple[Number, ...]


@frozen
class Raised:
    """The host function raised."""

    error: str
    """Type of the error."""
    detail: str | int | None
    """Code of a trap, or status of an exit. Not the message, which may have anybody's data."""


Operation: TypeAlias = Spent | Wrote | Grew | Invoked
Outcome: TypeAlias = Returned | Raised


@final
@define(eq=False)
class Answer:
    """The answer to one call of a host function."""

    host: int
    """Position of the host function among those of the module."""
    operations: list[Operation] = Factory(list)
    outcome: Outcome | None = None
    """How it ended; None: not yet, as the guest has failed in an export that it invoked."""

    def take_fuel(self, fuel: int) -> None:
        """Note that it took fuel."""
        last = self.operations[-1] if self.operations else None
        if isinstance(last, Spent):
            self.operations[-1] = Spent(last.fuel + fuel)
        elif fuel:
            self.operations.append(Spent(fuel))

    def give_back(self, fuel: int) -> None:
        """Note that so much of the fuel that was just taken was for an invoke."""
        last = self.operations.pop()
        assert isinstance(last, Spent)
        if last.fuel > fuel:
            self.operations.append(Spent(last.fuel - fuel))


@final
@define(eq=False)
class Answers:
    """The answers of the host in one call, row or start, as long as they fit."""

    room: int = MAX_CALL
    """Characters that are left."""
    answers: list[Answer] = Factory(list)
    cut: bool = False
    """Whether there was more than fits; then nothing of it is kept."""

    def begin(self, host: int) -> Answer:
        """Note that a host function is called; return what its answer is noted in."""
        answer = Answer(host)
        if not self.cut:
            self.answers.append(answer)
        self.count(OP_SIZE)
        return answer

    def count(self, characters: int) -> None:
        """Count characters of an answer, and give all up if they do not fit."""
        self.room -= characters
        if self.room < 0 and not self.cut:
            self.cut = True
            self.answers.clear()


def to_json(answers: list[Answer]) -> Json:
    """Return the object that JSON has for answers."""
    return [
        [
            answer.host,
            [_OPERATIONS[type(one)](one) for one in answer.operations],
            None if answer.outcome is None else _OUTCOMES[type(answer.outcome)](answer.outcome),
        ]
        for answer in answers
    ]


def from_json(made: Json) -> list[Answer]:
    """Return the answers of an object.

    Raises:
        UnreadableError: it is none of `to_json`.
    """
    try:
        return [
            Answer(
                _whole(host),
                [_operation(one) for one in operations],
                None if outcome is None else _outcome(outcome),
            )
            for host, operations, outcome in made
        ]
    except (TypeError, ValueError, KeyError) as error:
        raise UnreadableError(f"no answers of the host: {error}") from None


def numbers(values: tuple[Number, ...]) -> Json:
    """Return the object that JSON has for wasm values: an int as it is, a float as text."""
    return [encode_float(value) if isinstance(value, float) else int(value) for value in values]


_OPERATIONS: Final[dict[type, Any]] = {
    Spent: lambda it: ["fuel", it.fuel],
    Wrote: lambda it: ["write", it.at, encode_bytes(it.data)],
    Grew: lambda it: ["grow", it.pages],
    Invoked: lambda it: ["invoke", it.export, numbers(it.values)],
}
_OUTCOMES: Final[dict[type, Any]] = {
    Returned: lambda it: ["return", numbers(it.values)],
    Raised: lambda it: ["raise", it.error, it.detail],
}


def _operation(made: Json) -> Operation:
    match made:
        case ["fuel", fuel]:
            return Spent(_whole(fuel))
        case ["write", at, data]:
            return Wrote(_whole(at), decode_bytes(data))
        case ["grow", pages]:
            return Grew(_whole(pages))
        case ["invoke", str(export), list(values)]:
            return Invoked(export, _numbers(values))
    raise UnreadableError("no operation of the host")


def _outcome(made: Json) -> Outcome:
    match made:
        case ["return", list(values)]:
            return Returned(_numbers(values))
        case ["raise", str(error), (str() | int() | None) as detail]:
            return Raised(error, detail)
    raise UnreadableError("no end of a host function")


def _numbers(made: list[Json]) -> tuple[Number, ...]:
    return tuple(decode_float(one) if isinstance(one, str) else _number(one) for one in made)


def _number(made: Json) -> int:
    if not isinstance(made, int) or isinstance(made, bool):
        raise UnreadableError("no number")
    return made


def _whole(made: Json) -> int:
    if _number(made) < 0:
        raise UnreadableError("a negative number")
    return int(made)
