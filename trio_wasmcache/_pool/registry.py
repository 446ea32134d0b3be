"""Which functions there are, and the modules that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from attrs import define, field

from .._core.errors import DuplicateFunctionError, UnknownFunctionError
from .._core.keys import FunctionKey, near_misses, normalise_types
from .._core.policy.records import FunctionRecord


@final
@define(eq=False)
class Registry:
    """{key: function record}, and the names that are taken while they are being registered."""

    functions: dict[FunctionKey, FunctionRecord] = field(factory=dict)
    reserved: set[FunctionKey] = field(factory=set)
    generations: dict[FunctionKey, int] = field(factory=dict)
    exact: dict[tuple[str, tuple[str, ...]], FunctionRecord] = field(factory=dict)

    def find(self, name: str, args: Sequence[str]) -> FunctionRecord:
        """The function of that name and those types; spelt exactly is fastest.

        Raises:
            UnknownFunctionError: there is none; the message names near misses.
        """
        try:
            return self.exact[name, args]  # type: ignore[index]
        except (KeyError, TypeError):
            pass
        if not isinstance(name, str):
            raise TypeError(f"a function name must be a str, got {name!r:.100}")
        key = FunctionKey(name, normalise_types(args))
        try:
            return self.functions[key]
        except KeyError:
            pass
        similar = near_misses(key, self.functions)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UnknownFunctionError(f"no function {key} is registered{hint}")

    def reserve(self, key: FunctionKey, replace: bool) -> None:
        """Take the name before anything is awaited; `release` gives it back.

        Raises:
            DuplicateFunctionError: it is taken, and not to be replaced.
        """
        if key in self.reserved:
            raise DuplicateFunctionError(f"{key} is being registered already")
        if key in self.functions and not replace:
            raise DuplicateFunctionError(
                f"{key} is registered already; replace=True puts the new one in its place"
            )
        self.reserved.add(key)

    def close(self) -> None:
        """Let no acquire find a function the short way: the long way says that it is closed."""
        self.exact.clear()

    def release(self, key: FunctionKey) -> None:
        """`register` is over, well or badly."""
        self.reserved.discard(key)

    def next_generation(self, key: FunctionKey) -> int:
        """1 for a name never seen, and never the same twice while the cache is open."""
        self.generations[key] = self.generations.get(key, 0) + 1
        return self.generations[key]

    def put(self, record: FunctionRecord) -> FunctionRecord | None:
        """`record` serves its key from now on; the one that did until now is returned."""
        old = self.functions.get(record.key)
        self.functions[record.key] = record
        self.exact[record.key.name, record.key.args] = record
        return old

    def take(self, name: str, args: Sequence[str] | None) -> list[FunctionRecord]:
        """Remove one function, or all of that name if `args` is None.

        Raises:
            UnknownFunctionError: there is none.
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
