"""No ABI at all: an engine that runs no wasm gets Python values, and returns them.

It stands in for the ABI that a function was registered with. Values are checked as that one checks
them, and nothing is converted. An ABI of the user's own is not asked: its checks can't be told from
its conversions, which need the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import evolve, field, frozen

from .._core.errors import SignatureError
from .._core.keys import normalise_types
from .._core.text import shown
from .._core.wasm.reader import FuncType
from .assemblyscript import RUNTIME, AssemblyScriptAbi, is_needed
from .base import Abi, Exports, Guest, Invoke, Steps, Value
from .buffer import BufferAbi
from .marks import RTTI, SCYLLA_VERSION
from .plain import TYPES, Plain, PlainAbi, PlainType, reworded, wrong_count
from .scylla import NATIVE, ScyllaAbi

Types = str | Sequence[str] | None
"""Type of a result as `register` takes it: one, several, or None."""


class Checks(Protocol):
    """The part of a binding that checks values."""

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""


@frozen
class ValuesAbi:
    """An `Abi` that passes Python values as they are.

    Args:
        abi: the ABI that checks the values; None: AssemblyScript's if the module's exports indicate
            it, else the plain ABI, or Scylla's if a type is not plain.
        args: types of the arguments that the function takes; None: any.
        returns: type of its result; used with `args` only.
    """

    abi: Abi | None
    args: Sequence[str] | None
    returns: Types

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> ValuesBinding:
        """Return the binding for one function; see `Abi.bind`."""
        self._check(function, tuple(args), tuple(returns))
        abi: Abi | None = self.abi
        if abi is None:
            names = (*args, *returns)
            abi = Plain() if all(name in TYPES for name in names) else ScyllaAbi()
            if is_needed(names, exports):
                abi = AssemblyScriptAbi()
        # A result may be null, whatever the arguments may be.
        null_result = called_on_null or isinstance(abi, AssemblyScriptAbi)
        return ValuesBinding(
            function,
            export,
            tuple(args),
            tuple(returns),
            _checks(abi, function, args, returns, called_on_null),
            _checks(abi, function, returns, returns, null_result),
            _numbers(abi, function, returns, called_on_null),
        )

    def _check(self, function: str, args: tuple[str, ...], returns: tuple[str, ...]) -> None:
        if self.args is None:
            return
        mine = normalise_types(self.args), _several(self.returns)
        if mine != (args, returns):
            raise SignatureError(
                f"{function}: registered with args={args} and returns={returns}, but its fake has "
                f"args={mine[0]} and returns={mine[1]}"
            )


def _several(returns: Types) -> tuple[str, ...]:
    if returns is None:
        return ()
    return normalise_types((returns,) if isinstance(returns, str) else returns)


def _checks(
    abi: Abi, function: str, args: Sequence[str], returns: Sequence[str], called_on_null: bool
) -> Checks | None:
    """Return what checks values of these types; None for an ABI of the user's own."""
    if isinstance(abi, Plain):
        return PlainAbi(function, args, returns)
    binding: object = None
    if isinstance(abi, BufferAbi):
        # What allocates in the real module is missing here, and plays no part in checking.
        own = evolve(abi, alloc=None, free=None, result=abi.result or "packed")
        binding = own.bind(function, "", args, returns, _exports(), called_on_null)
    elif isinstance(abi, (ScyllaAbi, AssemblyScriptAbi)):
        binding = abi.bind(function, "", args, returns, _exports(), called_on_null)
    return binding if hasattr(binding, "misfit") else None


def _exports() -> Exports:
    functions: Mapping[str, FuncType] = {"": FuncType((), ()), **RUNTIME}
    return Exports(functions, {SCYLLA_VERSION: "i32", RTTI: "i32"}, ("memory",))


def _numbers(
    abi: Abi, function: str, returns: Sequence[str], called_on_null: bool
) -> PlainAbi | None:
    """Return the plain ABI of results that are numbers; None if not all of them are."""
    types = TYPES
    if isinstance(abi, ScyllaAbi):
        types = {} if called_on_null else NATIVE
    elif not isinstance(abi, (Plain, BufferAbi, AssemblyScriptAbi)):
        return None
    if not returns or not all(name in types for name in returns):
        return None
    return PlainAbi(function, returns, returns, types=types)


@frozen(eq=False)
class ValuesBinding:
    """Python values, as they are: a `Binding`."""

    what: str
    export: str
    args: tuple[str, ...]
    returns: tuple[str, ...]
    checks_args: Checks | None
    checks_result: Checks | None
    plain: PlainAbi | None
    """Converts results that are numbers to Python's own; None if not all of them are."""
    signature: FuncType = field(default=FuncType((), ()), init=False)
    lower: Callable[[tuple[object, ...]], Sequence[object]] | None = field(default=None, init=False)
    lift: Callable[[Value], Value] | None = field(default=None, init=False)

    @property
    def arity(self) -> int:
        return len(self.args)

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of the results, if they are numbers; else empty."""
        return () if self.plain is None else self.plain.returns

    def explain(self, values: tuple[object, ...]) -> Exception:
        if len(values) != len(self.args):
            return wrong_count(self.what, self.args, values)
        problem = None if self.checks_args is None else self.checks_args.misfit(values)
        return problem or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def steps(self, guest: Guest, values: tuple[object, ...]) -> Steps:  # noqa: ARG002 -- no memory
        """Perform one call; see `Binding.steps`."""
        problem = None if self.checks_args is None else self.checks_args.misfit(values)
        if problem is not None:
            raise problem
        result = yield Invoke(self.export, values)
        return self._checked(result)

    def _checked(self, result: Value) -> Value:
        """Return the result; raise `TypeError` and others if it is not of the declared types."""
        if not self.returns:
            return None
        several = len(self.returns) > 1
        if several and (not isinstance(result, tuple) or len(result) != len(self.returns)):
            raise TypeError(
                f"the fake of {self.what} returned {shown(result)}: {len(self.returns)} results "
                f"take a tuple of that many values"
            )
        made = result if several else (result,)
        problem = None if self.checks_result is None else self.checks_result.misfit(made)
        if problem is not None:
            raise _about_result(problem, self.what)
        if self.plain is None:
            return result
        lowered = self.plain.checked(made)
        lifted = lowered if several else lowered[0]
        return lifted if self.plain.lift is None else self.plain.lift(lifted)


def _about_result(problem: Exception, what: str) -> Exception:
    """Return the error of an argument as one of a result."""
    why = str(problem).split(what, 1)[-1].lstrip(":, ")
    return reworded(problem, f"the fake of {what} returned what does not fit: {why}")
