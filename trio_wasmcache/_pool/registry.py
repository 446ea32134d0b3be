"""The registered functions of one cache by name and types, and the names being registered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import trio

from .._core.errors import DuplicateFunctionError, UnknownFunctionError
from .._core.keys import MAX_NAME_LENGTH, FunctionKey, near_misses, normalise_types, spelt_out
from .._core.policy.records import FunctionRecord
from .._core.text import listed, printable, quoted, shown, written


@final
class Registry:
    """Registered functions, and names that are reserved while they are being registered."""

    __slots__ = ("_overloads", "exact", "functions", "generations", "reserved")

    def __init__(self) -> None:
        self.functions: dict[FunctionKey, FunctionRecord] = {}
        """Record of each function, in order of registration."""
        self.reserved: dict[FunctionKey, trio.CancelScope] = {}
        """Keys that are being registered, and the scope around each registration."""
        self.generations: dict[FunctionKey, int] = {}
        """Last generation of each key that was ever registered."""
        self.exact: dict[tuple[str, tuple[str, ...] | None], FunctionRecord] = {}
        """Record of each function by its name and types in their normal spelling, for fast lookups;
        and by its name and None, if no other function has that name."""
        self._overloads: dict[str, int] = {}  # {name: functions of that name}

    def find(self, name: str, args: Sequence[str] | None) -> FunctionRecord:
        """Return the function of this name and these types; their normal spelling is fastest.

        Args:
            name: its name.
            args: types of its arguments; None if it is the only function of that name.

        Raises:
            UnknownFunctionError: no such function is registered, or there are several if `args` is
                None; the message names similar ones.
            TypeError: the name is not a str, or `args` is not a sequence of str.
        """
        try:
            return self.exact[name, args]  # type: ignore[index]
        except (KeyError, TypeError):
            pass
        if not isinstance(name, str):
            raise TypeError(f"a function name must be a str, got {_described(name)}")
        if args is None:
            return self._find_only(name)
        what = f"{printable(name, MAX_NAME_LENGTH)}: args"
        key = FunctionKey(name, normalise_types(args, what))
        try:
            return self.functions[key]
        except KeyError:
            pass
        raise self._unknown(key, str(key))

    def _find_only(self, name: str) -> FunctionRecord:
        """Return the only function of a name; raise `UnknownFunctionError` if it is not one."""
        named = [record for key, record in self.functions.items() if key.name == name]
        if len(named) == 1:
            return named[0]
        if not named:
            raise self._unknown(FunctionKey(name, ()), printable(name, MAX_NAME_LENGTH))
        keys = [str(record.key) for record in named]
        first = quoted(named[0].key.args)
        raise UnknownFunctionError(
            f"there are {len(keys)} functions {name}: {listed(keys, 4)}; give the types of the "
            f"arguments of one, such as args={first}"
        )

    def named(self, name: str) -> list[FunctionRecord]:
        """Return all functions of a name.

        Raises:
            UnknownFunctionError: there is none.
        """
        found = [record for key, record in self.functions.items() if key.name == name]
        return found or [self.find(name, None)]

    def _unknown(self, key: FunctionKey, what: str) -> UnknownFunctionError:
        """Return the error for a function that is not registered, which says what may be meant."""
        spelt = spelt_out(key.name, self.functions)
        if spelt:
            right = " or ".join(f"{written(one.name)}, {quoted(one.args)}" for one in spelt)
            return UnknownFunctionError(
                f"no function is named {printable(key.name, MAX_NAME_LENGTH)}: give its name and "
                f"the types of its arguments apart, as {right}"
            )
        similar = near_misses(key, self.functions)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        return UnknownFunctionError(f"no function {what} is registered{hint}")

    def reserve(self, key: FunctionKey, replace: bool) -> trio.CancelScope:
        """Reserve a key before anything is awaited; `release` frees it.

        Returns:
            The scope to register it in, which is cancelled when the cache is closed.

        Raises:
            DuplicateFunctionError: it is being registered, or is registered and `replace` is False.
        """
        if key in self.reserved:
            raise DuplicateFunctionError(f"{key} is being registered already")
        if key in self.functions and not replace:
            raise DuplicateFunctionError(
                f"{key} is registered already; replace=True puts the new one in its place"
            )
        scope = self.reserved[key] = trio.CancelScope()
        return scope

    def reserve_all(self, keys: Iterable[FunctionKey], replace: bool) -> trio.CancelScope:
        """Reserve several different keys, all or none; see `reserve`."""
        reserved: list[FunctionKey] = []
        scope = trio.CancelScope()
        try:
            for key in keys:
                self.reserve(key, replace)
                self.reserved[key] = scope
                reserved.append(key)
        except DuplicateFunctionError:
            for key in reserved:
                self.release(key)
            raise
        return scope

    def close(self) -> None:
        """Cancel registrations, and empty the fast lookup: every acquire takes the slow path."""
        for scope in self.reserved.values():
            scope.cancel()
        self.exact.clear()

    def release(self, key: FunctionKey) -> None:
        """Free a reserved key, as its `register` has ended, with success or not."""
        self.reserved.pop(key, None)

    def next_generation(self, key: FunctionKey) -> int:
        """Return the generation for a new registration: 1 for a new key, never one used before."""
        self.generations[key] = self.generations.get(key, 0) + 1
        return self.generations[key]

    def put(self, record: FunctionRecord) -> FunctionRecord | None:
        """Make `record` the function of its key; return the record that it replaces, or None."""
        old = self.functions.get(record.key)
        self.functions[record.key] = record
        name = record.key.name
        self.exact[record.spelling] = record
        count = self._overloads[name] = self._overloads.get(name, 0) + (old is None)
        if count == 1:
            self.exact[name, None] = record
        else:
            self.exact.pop((name, None), None)
        return old

    def take(self, name: str, args: Sequence[str] | None) -> list[FunctionRecord]:
        """Remove and return one function, or all functions of a name if `args` is None.

        Raises:
            UnknownFunctionError: no such function is registered.
        """
        if args is not None:
            found = [self.find(name, args)]
        else:
            found = [record for key, record in self.functions.items() if key.name == name]
            if not found:
                self.find(name, None)
        for record in found:
            del self.functions[record.key]
            del self.exact[record.spelling]
            self._forget_overload(record.key.name)
        return found

    def _forget_overload(self, name: str) -> None:
        self._overloads[name] -= 1
        self.exact.pop((name, None), None)
        if not self._overloads[name]:
            del self._overloads[name]
        elif self._overloads[name] == 1:
            (only,) = (record for key, record in self.functions.items() if key.name == name)
            self.exact[name, None] = only


def _described(name: object) -> str:
    """Return what was given in place of a name; of a function, what to write."""
    key = getattr(name, "key", None)
    if not isinstance(key, FunctionKey):
        return shown(name)
    return (
        f'the function {key}: give its name and types, "{key.name}", {quoted(key.args)}, or use '
        "its own acquire() and call()"
    )
