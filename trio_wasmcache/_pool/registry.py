"""The registered functions of one cache by name and types, and the names being registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import trio
from attrs import define, field

from .._core.errors import DuplicateFunctionError, UnknownFunctionError
from .._core.keys import MAX_NAME_LENGTH, FunctionKey, near_misses, normalise_types
from .._core.policy.records import FunctionRecord
from .._core.text import printable


@final
@define(eq=False)
class Registry:
    """Registered functions, and names that are reserved while they are being registered."""

    functions: dict[FunctionKey, FunctionRecord] = field(factory=dict)
    """Record of each function, in order of registration."""
    reserved: dict[FunctionKey, trio.CancelScope] = field(factory=dict)
    """Keys that are being registered, and the scope around each registration."""
    generations: dict[FunctionKey, int] = field(factory=dict)
    """Last generation of each key that was ever registered."""
    exact: dict[tuple[str, tuple[str, ...]], FunctionRecord] = field(factory=dict)
    """Record of each function by its name and types in their normal spelling, for fast lookups."""

    def find(self, name: str, args: Sequence[str]) -> FunctionRecord:
        """Return the function of this name and these types; their normal spelling is fastest.

        Raises:
            UnknownFunctionError: no such function is registered; the message names similar ones.
            TypeError: the name is not a str, or `args` is not a sequence of str.
        """
        try:
            return self.exact[name, args]  # type: ignore[index]
        except (KeyError, TypeError):
            pass
        if not isinstance(name, str):
            raise TypeError(f"a function name must be a str, got {name!r:.100}")
        key = FunctionKey(name, normalise_types(args, f"{printable(name, MAX_NAME_LENGTH)}: args"))
        try:
            return self.functions[key]
        except KeyError:
            pass
        similar = near_misses(key, self.functions)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UnknownFunctionError(f"no function {key} is registered{hint}")

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
        self.exact[record.key.name, record.key.args] = record
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
                self.find(name, ())
        for record in found:
            del self.functions[record.key]
            del self.exact[record.key.name, record.key.args]
        return found
