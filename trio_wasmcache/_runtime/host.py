"""Host functions: Python functions that an application lets its guests call; and other imports.

The Python function runs in the task that called the guest, on the ordinary stack, while the guest
is suspended. An async one may await, open cancel scopes, and is cancelled with the call.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, final

from attrs import field, frozen

from .._abi.base import Value
from .._abi.bytes_and_text import BUFFERS
from .._abi.plain import TYPES, PlainAbi, fitting, to_number
from .._core.config import is_async
from .._core.errors import SignatureError, TrapError
from .._core.keys import normalise_types
from .._core.text import cut, quoted, shown
from .._core.wasm.admission import REFERENCE_GLOBALS, Provided, import_name, signature
from .._core.wasm.encoding import sleb
from .._core.wasm.reader import VALUE_LIMIT, FuncType, ModuleInfo
from .._engine.base import HostCall
from .._public import public
from .session import NOTHING, Grants
from .user_code import await_unprotected, call_unprotected, identity
from .wasi_config import Wasi

if TYPE_CHECKING:  # imported where a module needs them
    from .._core.wasm.arms import Arm, Returned
    from .assemblyscript import ScriptFunction
    from .wasi import WasiFunction

# Types of values of host functions that cross as offsets of blocks, besides the plain ABI's.
OFFSETS = {**TYPES, **dict.fromkeys(BUFFERS, TYPES["i64"])}
# Characters of a function's own name in messages.
MAX_NAME = 100


class _Default(tuple[str, ...]):
    """The types of a `HostFunction` for which none were given."""

    __slots__ = ()


_DEFAULT = _Default(("i64",))


def _params(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, _Default):
        return names
    return normalise_types(names, "params of a HostFunction")


def _results(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, _Default):
        return names
    return normalise_types(names, "results of a HostFunction")


@public
@final
@frozen
class HostFunction:
    """A Python function that a guest may import.

    ``HostFunction(lookup, params=("i64",), results=("i64",))``

    `fn` is called with one value for each of `params`. It must return a value if there is one
    result, a tuple if there are several, and None if there is none. ``"str"`` and ``"bytes"`` are
    for Extism plugins, see `ExtismAbi`. `Lease.call` raises the exceptions of `fn` unchanged. While
    `fn` runs, `trio_wasmcache.current_lease()` returns the lease whose guest called; `Lease.memory`
    gives access to the memory of that guest.

    A reentrant one may call exports of that guest before it returns: see `Lease.invoke`. Its types
    are numbers.

    .. code-block::

        async def greeting(number: int) -> int:
            lease = current_lease()
            at = await lease.invoke("malloc", 5)
            lease.memory.write(at, b"hello")
            return at

        HostFunction(greeting, params=("i32",), results=("i32",), reentrant=True)

    Raises:
        SignatureError: a type is unknown, or a reentrant function has 1000 results or more, or
            ``"str"`` or ``"bytes"`` among its types.
        TypeError: `fn` is not callable; neither `params` nor `results` is given; one of them is
            not a sequence of str; `pure` is not a bool; or `reentrant` is not a bool, or True for a
            function that is not an ``async def``.
    """

    fn: Callable[..., Value] = field(eq=identity)
    """Sync or async function. A sync one runs on the event loop, so it should be short."""
    params: tuple[str, ...] = field(default=_DEFAULT, converter=_params)
    """Types of the arguments, of the plain ABI, such as ``"i64"`` or ``"u32"``; ``("i64",)`` if
    only `results` are given."""
    results: tuple[str, ...] = field(default=_DEFAULT, converter=_results)
    """Types of the results, of the plain ABI; ``("i64",)`` if only `params` are given."""
    reentrant: bool = field(default=False, kw_only=True)
    """Whether it may call exports of the guest; it must be async then. Each call of it takes about
    a tenth longer. Making an instance takes about 15 microseconds more, and half a microsecond for
    each reentrant import."""
    pure: bool = field(default=False, kw_only=True)
    """Whether it always returns the same for the same arguments and the same memory of the guest,
    and changes nothing else: then a guest may call it while it is prepared, see `Prepare`."""
    _abi: PlainAbi = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"a host function must be callable, got {shown(self.fn)}")
        name = cut(getattr(self.fn, "__qualname__", None) or shown(self.fn), MAX_NAME)
        if isinstance(self.params, _Default) and isinstance(self.results, _Default):
            raise TypeError(
                f"host function {name} has no types: write HostFunction(fn, "
                'params=("i64",), results=("i64",)), with () where there is none'
            )
        if not isinstance(self.reentrant, bool):
            raise TypeError(f"reentrant must be a bool, got {shown(self.reentrant)}")
        if not isinstance(self.pure, bool):
            raise TypeError(f"pure must be a bool, got {shown(self.pure)}")
        if self.reentrant and not is_async(self.fn):
            raise TypeError(
                f"host function {name} is reentrant, so it must be an async function (async def): "
                "it has to await invoke()"
            )
        if self.reentrant and self.blocks:
            raise SignatureError(
                f"host function {name} is reentrant, and so can't have str or bytes among its types"
            )
        if self.reentrant and len(self.results) >= VALUE_LIMIT:
            raise SignatureError(
                f"host function {name} is reentrant and has {len(self.results)} results: it can "
                f"have at most {VALUE_LIMIT - 1}"
            )
        self._check_arity(name)
        # The host returns what the guest gets: its results are lowered, its parameters lifted.
        types = OFFSETS if self.blocks else TYPES
        abi = PlainAbi(f"host function {name}", self.results, self.params, host=True, types=types)
        object.__setattr__(self, "_abi", abi)

    def _check_arity(self, name: str) -> None:
        """Check that `fn` takes as many arguments as there are `params`.

        Only of plain functions and methods, as others may say what is not so.

        Raises:
            TypeError: it does not.
        """
        fn: Any = self.fn
        # A method may be of any callable: of one in C, or of one that says what it likes.
        plain = fn.__func__ if inspect.ismethod(fn) else fn
        if not inspect.isfunction(plain) or hasattr(plain, "__signature__"):
            return
        try:
            # Not that of a function that it wraps, which may take others.
            inspect.signature(fn, follow_wrapped=False).bind(*self.params)
        except TypeError as error:
            left_out = isinstance(self.params, _Default)
            said = "by params, which were left out" if left_out else "by params"
            raise TypeError(
                f"host function {name} can't be called with the {quoted(self.params)} that it gets "
                f"{said}: {error}"
            ) from None

    @property
    def blocks(self) -> bool:
        """Whether it takes or returns bytes or text, which only an Extism plugin can give."""
        return not {*self.params, *self.results}.isdisjoint(BUFFERS)

    @property
    def what(self) -> str:
        """Name of the function for messages."""
        return self._abi.what

    @property
    def type(self) -> FuncType:
        """Type of the function for the guest, in wasm types."""
        return FuncType(self._abi.signature.results, self._abi.signature.params)

    def misfit(self, wanted: FuncType) -> str:
        """Return words for a message: its type, and the declaration that makes it `wanted`.

        Args:
            wanted: type of the import.
        """
        params = fitting(self._abi.returns, wanted.params)
        results = fitting(self._abi.args, wanted.results)
        defaults = [
            f'{name} were left out, which means ("i64",)'
            for name, types in (("params", self.params), ("results", self.results))
            if isinstance(types, _Default)
        ]
        default = f" ({defaults[0]})" if defaults else ""
        return (
            f"its HostFunction says {signature(self.type)}{default}: "
            f"give params={quoted(params)}, results={quoted(results)}"
        )

    serve_alone = None
    """None, as `serve` may need the task that called: see `HostImport.serve`."""

    def serve(
        self, call: HostCall
    ) -> tuple[object, ...] | Coroutine[object, object, tuple[object, ...]]:
        """Call `fn` with the guest's arguments; return wasm values, or a coroutine that does.

        The cache calls this.

        Args:
            call: the call that the guest made.

        Raises:
            TypeError: `fn` returned another number of values than there are `results`.
            RuntimeError: `fn` raised StopIteration, which no coroutine can raise further.
        """
        values = call.values
        if self._abi.lift is not None:
            lifted = self._abi.lift(values[0] if len(values) == 1 else values)
            values = (lifted,) if len(values) == 1 else lifted
        result = self.call(values)
        return self._rest(result, call) if inspect.isawaitable(result) else self._checked(result)

    def call(self, values: tuple[object, ...]) -> object:
        """Call `fn`; return its result, or an awaitable. The cache calls this.

        Args:
            values: an argument for each of `params`.

        Raises:
            RuntimeError: `fn` raised StopIteration, which no coroutine can raise further.
        """
        try:
            return call_unprotected(self.fn, values)
        except StopIteration as error:
            raise RuntimeError(
                f"{self._abi.what} raised StopIteration, which no coroutine can raise further: "
                "return a value, or raise another exception"
            ) from error

    async def _rest(self, result: Awaitable[object], call: HostCall) -> tuple[object, ...]:
        return self._checked(await await_unprotected(result, call))

    def _checked(self, result: object) -> tuple[object, ...]:
        return self._abi.checked(self.given(result))

    def given(self, result: object) -> tuple[object, ...]:
        """Return a value for each of `results`, of what `fn` returned. The cache calls this.

        Args:
            result: the result of `fn`.

        Raises:
            TypeError: it is another number of values.
        """
        if not self.results:
            given: tuple[object, ...] = () if result is None else (result,)
        elif len(self.results) == 1:
            given = (result,)
        else:
            given = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if len(given) != len(self.results):
            raise TypeError(
                f"{self._abi.what} must return {_count(self.results)}, returned {shown(result)}"
            )
        return given


@public
@final
@frozen
class HostMemory:
    """A memory for a module that imports one: given in `imports=`, to OPA's policies for example.

    .. code-block::

        imports={"env": {"memory": HostMemory()}}

    The module then works as if it defined the memory itself. Every instance has its own, which
    begins with the size that the import declares, and may grow up to its maximum and
    `memory_limit`, of which several growable memories of one instance have fixed equal parts. It
    counts in `Lease.size`, and is reset or dropped with the instance.
    `Lease.memory` is this memory if the module exports none.

    A `HostMemory` may be given for several imports and modules, as each import of each instance
    gets another memory. So a module that imports the same one twice is refused (`LinkError`). Two
    modules can't share one.
    """

    @property
    def provided(self) -> Provided:
        """Definition that takes the place of the import."""
        return Provided("memory")


@public
@final
@frozen
class HostTable:
    """A table for a module that imports one, given in `imports=`; see `HostMemory`.

    .. code-block::

        imports={"env": {"__indirect_function_table": HostTable()}}

    It begins with the number of elements that the import declares, all null, before the module's
    own element segments are copied to it. It may grow up to its maximum and `table_limit`.
    """

    @property
    def provided(self) -> Provided:
        """Definition that takes the place of the import."""
        return Provided("table")


def _global_type(name: str) -> str:
    (found,) = normalise_types((name,), "the type of a HostGlobal")
    return found


@public
@final
@frozen
class HostGlobal:
    """A global for a module that imports one, given in `imports=`; see `HostMemory`.

    .. code-block::

        imports={"env": {"__memory_base": HostGlobal("u32", 1024), "scale": HostGlobal("f64", 0.5)}}

    It is mutable if the import is. Then every instance has its own, and `value` is the first value.

    Raises:
        SignatureError: the type is unknown.
        TypeError, OverflowError: the value does not fit the type.
    """

    type: str = field(converter=_global_type)
    """Type of the plain ABI, such as ``"i64"`` or ``"u32"``; or ``"funcref"`` or ``"externref"``,
    whose one value is None."""
    value: int | float | None = field(eq=False)
    """Initial value."""
    provided: Provided = field(init=False, repr=False)
    """Definition that takes the place of the import; two globals are equal if theirs are."""

    def __attrs_post_init__(self) -> None:
        initial = REFERENCE_GLOBALS.get(self.type)
        if initial is not None:
            if self.value is not None:
                raise TypeError(
                    f"HostGlobal: the one value of {self.type} is None, got {shown(self.value)}"
                )
            made = Provided("global", self.type, initial)
        else:
            try:
                abi = PlainAbi("HostGlobal", (self.type,), (), host=True)
            except SignatureError as error:
                also = " or ".join(REFERENCE_GLOBALS)
                raise SignatureError(f"{error}; a global can also be {also}") from None
            try:
                number = to_number(abi.args[0], self.value)
            except (TypeError, ValueError, OverflowError) as error:
                raise type(error)(f"HostGlobal: {error}") from None
            made = Provided("global", abi.args[0].wasm, _CONSTANTS[abi.args[0].wasm](number))
        object.__setattr__(self, "provided", made)


_CONSTANTS: dict[str, Callable[[Value], bytes]] = {
    "i32": lambda number: b"\x41" + sleb(number) + b"\x0b",
    "i64": lambda number: b"\x42" + sleb(number) + b"\x0b",
    "f32": lambda number: b"\x43" + struct.pack("<f", number) + b"\x0b",
    "f64": lambda number: b"\x44" + struct.pack("<d", number) + b"\x0b",
}

HostExtern: TypeAlias = HostMemory | HostTable | HostGlobal
"""A given import that is no function."""
Importable: TypeAlias = HostFunction | HostExtern
"""What `imports=` may contain."""


@final
class MissingFunction:
    """An imported function that nobody provides; calling it traps."""

    __slots__ = ("module", "name", "type", "wit")

    def __init__(self, module: str, name: str, type: FuncType, wit: str = "") -> None:
        self.module = module
        self.name = name
        self.type = type
        self.wit = wit
        """Its type as WIT writes it; empty: a core module imports it."""

    @property
    def serve_alone(self) -> Callable[[HostCall], NoReturn]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"nobody provides it, and it is {signature(self.type)}"

    def serve(self, call: HostCall) -> NoReturn:  # noqa: ARG002  # it does not come to that
        """Raise the trap."""
        raise TrapError(
            f"the guest called {import_name(self.module, self.name)} "
            f"{self.wit or signature(self.type)}, "
            'which it imports and nobody provides (missing="trap"): give it by imports=',
            code="missing import",
        )


@final
@frozen
class TrampolineHost:
    """An import of a trampoline, which the engine answers: see `_core/wasm/trampoline`."""

    helper: Arm | Returned
    serve_alone = None

    @property
    def type(self) -> FuncType:
        """Type of the import."""
        return self.helper.type

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"it is {signature(self.type)}"

    def serve(self, call: HostCall) -> NoReturn:
        """Refuse to be called: no engine asks for it."""
        raise AssertionError(f"host call {call.index} is the engine's")


class OwnHost(Protocol):
    """A host function of a part that this library puts beside the guest."""

    @property
    def type(self) -> FuncType:
        """Type of the function for the part, in wasm types."""

    @property
    def serve_alone(self) -> Callable[[HostCall], Value] | None:
        """Function that answers without a task, if there is one: see `HostImport.serve`."""

    def misfit(self, wanted: FuncType, /) -> str:
        """Return words for a message: its type."""

    def serve(self, call: HostCall, /) -> Value:
        """Answer a call; see `HostFunction.serve`."""


AnyHost: TypeAlias = (
    "HostFunction | WasiFunction | ScriptFunction | MissingFunction | TrampolineHost | OwnHost"
)


def is_wasi(host: AnyHost) -> bool:
    """Return whether a host function is one of WASI preview 1, recorded or played ones included.

    A component's own adapter would answer it without leaving the component.
    """
    return getattr(getattr(host, "host", host), "of_preview_1", False)


def is_reentrant(host: AnyHost) -> bool:
    """Return whether a host function may call exports of the guest."""
    return isinstance(host, HostFunction) and host.reentrant


def missing_functions(
    missing: Mapping[tuple[str, str], FuncType],
) -> dict[tuple[str, str], MissingFunction]:
    """Return functions that trap, for imports that nobody provides.

    Args:
        missing: {(module, name): type} of the imports.
    """
    return {name: MissingFunction(*name, type) for name, type in missing.items()}


def provided(
    info: ModuleInfo, given: Mapping[tuple[str, str], HostFunction], grants: Grants
) -> dict[tuple[str, str], AnyHost]:
    """Return {(module, name): host function} for a module: also WASI's and its library's.

    These are imported only for a module that imports what is not given.

    Args:
        info: the module.
        given: those that were registered, which take precedence.
        grants: what WASI's grant.
    """
    if all((item.module, item.name) in given for item in info.imports):
        return {**given}
    from .assemblyscript import functions_for
    from .wasi import functions_of

    return {**functions_for(info, grants), **functions_of(grants), **given}


def _count(results: Sequence[str]) -> str:
    if not results:
        return "nothing, as its results are ()"
    return f"a tuple of {len(results)} values, as its results are {quoted(results)}"


def flatten(
    imports: Mapping[str, Mapping[str, Importable]] | None,
) -> tuple[dict[tuple[str, str], HostFunction], dict[tuple[str, str], HostExtern]]:
    """Return {(module, name): host function}, and likewise the rest.

    Raises:
        TypeError: `imports` is not a mapping of mappings of `Importable` by str.
    """
    flat: dict[tuple[str, str], HostFunction] = {}
    externs: dict[tuple[str, str], HostExtern] = {}
    if imports is None:
        return flat, externs
    if not isinstance(imports, Mapping):
        raise TypeError(
            f'imports must be {{"module": {{"name": HostFunction(...)}}}}, got {shown(imports)}'
        )
    for module, names in imports.items():
        if not isinstance(module, str):
            raise TypeError(f"imports: the name of a module must be a str, got {shown(module)}")
        if not isinstance(names, Mapping):
            raise TypeError(
                f"imports[{shown(module)}] must be a mapping such as "
                f'{{"name": HostFunction(...)}}, got {shown(names)}'
            )
        for name, host in names.items():
            if not isinstance(name, str):
                raise TypeError(f"imports[{module!r}]: a name must be a str, got {shown(name)}")
            if isinstance(host, HostFunction):
                flat[module, name] = host
            elif isinstance(host, (HostMemory, HostTable, HostGlobal)):
                flat.pop((module, name), None)
                externs[module, name] = host
            else:
                raise TypeError(not_importable(f"imports[{shown(module)}][{shown(name)}]", host))
    return flat, externs


def grants_for(wasi: Wasi | None) -> Grants:
    """Return what WASI grants.

    Raises:
        TypeError: `wasi` is something else than a `Wasi`.
    """
    if wasi is None:
        return NOTHING
    if not isinstance(wasi, Wasi):
        raise TypeError(f'wasi must be a Wasi, such as Wasi(args=("prog",)), got {wasi!r:.200}')
    return NOTHING if wasi == NOTHING.wasi else Grants(wasi)


def not_importable(where: str, given: object) -> str:
    """Return the message for something that can't be given as an import."""
    for kind, made in (
        (HostMemory, "HostMemory()"),
        (HostTable, "HostTable()"),
        (HostGlobal, 'HostGlobal("i32", 0)'),
    ):
        if given is kind:
            return f"{where} must be an object, not a class: write {made}"
    others = "" if callable(given) else ", HostMemory(), HostTable() or HostGlobal(type, value)"
    remedy = "" if callable(given) else "; for a component, give the function itself"
    return (
        f"{where} must be a HostFunction(function, params=..., results=...){others}, "
        f"got {shown(given)}{remedy}"
    )
