"""Pickles and copies errors with all that they carry, whatever that is.

An error carries the arguments of the call, which may be of any type. One that can't be pickled must
not keep the error from reaching the process that has to know of it, so its repr is pickled instead.
"""

from __future__ import annotations

import contextvars
import copy
import pickle
from typing import Any, SupportsIndex, TypeVar, final

from .text import shown

E = TypeVar("E", bound=BaseException)

# {id: (object, what is pickled of it)}, while one is pickled on trial. Objects that refer to each
# other are judged once, and one that is met again while it is judged is taken to be good.
_judged: contextvars.ContextVar[dict[int, tuple[object, Any]] | None] = contextvars.ContextVar(
    "trio_wasmcache_judged", default=None
)


def remake(kind: type[E]) -> E:
    """Return an error without its attributes, which `__setstate__` will set; for pickles."""
    return kind.__new__(kind)


def reduce_error(error: BaseException, protocol: SupportsIndex) -> tuple[object, ...]:
    """Return what `__reduce_ex__` of an error is to return."""
    return remake, (type(error),), _judge(error, attributes(error), protocol)


def copy_error(error: E) -> E:
    """Return a copy that shares the attributes of an error."""
    made = remake(type(error))
    made.__setstate__(attributes(error))
    return made


def deepcopy_error(error: E, memo: dict[int, Any]) -> E:
    """Return a copy with copies of the attributes of an error; those that can't be are shared."""
    made = memo[id(error)] = remake(type(error))
    made.__setstate__({name: _deepcopy(value, memo) for name, value in attributes(error).items()})
    return made


def attributes(error: BaseException) -> dict[str, Any]:
    """Return all that an error carries, its message (`args`) and notes included."""
    return {**error.__dict__, "args": error.args}


@final
class CallValues(tuple[object, ...]):
    """The arguments of a failed call: a tuple that can be pickled whatever is in it.

    Errors of built-in types carry it, too, which know nothing of this file.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        return tuple, (_judge(self, tuple(self), protocol),)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallValues:
        return CallValues(_deepcopy(tuple(self), memo))


def _judge(whose: object, value: Any, protocol: SupportsIndex) -> Any:
    """Return `value`, or as much of it as can be pickled; it is part of the object `whose`."""
    judged = _judged.get()
    if judged is None:
        token = _judged.set({})
        try:
            return _judge(whose, value, protocol)
        finally:
            _judged.reset(token)
    if id(whose) not in judged:
        judged[id(whose)] = whose, type(value)()
        judged[id(whose)] = whose, _portable(value, protocol)
    return judged[id(whose)][1]


def _portable(value: Any, protocol: SupportsIndex, levels: int = 2) -> Any:
    """Return `value` if it can be pickled, else with the repr of each part that can't be.

    The parts are looked for in dicts and tuples, `levels` deep: attributes and their items.
    """
    try:
        # Loaded, too: some exceptions can be pickled, but their pickles can't be loaded.
        pickle.loads(pickle.dumps(value, protocol.__index__()))
    except Exception:
        if levels and type(value) is dict:
            return {name: _portable(part, protocol, levels - 1) for name, part in value.items()}
        if levels and type(value) is tuple:
            return tuple(_portable(part, protocol, levels - 1) for part in value)
        return shown(value)
    return value


def _deepcopy(value: Any, memo: dict[int, Any], levels: int = 1) -> Any:
    """Return a deep copy of `value`, which shares what can't be copied, or its items that can't."""
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        if levels and type(value) is tuple:
            return tuple(_deepcopy(part, memo, levels - 1) for part in value)
        return value
