"""Registers functions: checks parameters, reads the module, and compiles each module once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import operator
import os
import sys
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final

import trio
from attrs import evolve, field, frozen

from .._abi import check_abi, check_binding, exports_of, recognise
from .._abi.base import Abi, Binding, LayeredAbi
from .._abi.plain import Plain, PlainAbi, fitting
from .._core.config import CacheConfig
from .._core.errors import (
    InvalidModuleError,
    LinkError,
    LoadError,
    ModuleTooLargeError,
    SignatureError,
)
from .._core.keys import (
    INFERRED,
    FunctionKey,
    Inferred,
    check_name,
    normalise_type,
    normalise_types,
)
from .._core.text import listed, printable, quoted, shown, written
from .._core.tiers import BASELINE, OPTIMIZING, PROFILED, TIERED, Tier
from .._core.wasm.admission import (
    Edits,
    MoreEdits,
    Provided,
    check_counts,
    check_crossing,
    check_export,
    check_imports,
    check_limits,
    check_signature,
    heap_size,
    import_name,
    initials_of,
    missing_imports,
    signature,
)
from .._core.wasm.custom import custom_size, find_custom_sections, without_trailing_sections
from .._core.wasm.formats import LOOKED_AT, is_component, known_format
from .._core.wasm.isolation import ISOLATIONS, RESET, REUSE, Isolation, hides_globals, obstacle
from .._core.wasm.reader import (
    HEADER,
    ExcessiveModuleError,
    ForeignFormatError,
    FuncType,
    ModuleInfo,
    import_late,
)
from .._core.wasm.types import USER
from .._engine.base import Engine, HostImport, StartCall, Substitute
from .._engine.compile_slots import AnyTurn, Turn
from .._gil import Breath
from .._runtime.host import (
    AnyHost,
    HostExtern,
    HostFunction,
    MissingFunction,
    TrampolineHost,
    flatten,
    grants_for,
    is_reentrant,
    missing_functions,
    not_importable,
    provided,
)
from .._runtime.module import INITIALIZE, CachedModule
from .._runtime.prepare import Prepare, Prepared, UnknownValueError, digest_of
from .._runtime.session import NOTHING, Grants
from .._runtime.versions import library_versions
from .._runtime.wasi_config import Wasi
from .._runtime.wit_function import WitFunction, plain_functions
from .._threads import importing, run_in_thread
from .capacity import GroupState
from .pool import Pool

if TYPE_CHECKING:  # parts that few functions need, which are imported where they are used
    from .._core.wasm.graph import Graph, Layer
    from .._core.wasm.preparation import FrozenState
    from .._runtime.recording import Setup
    from .components import Needed, Offered, Taken
    from .preparation import Booking, PrepareCall, Preparing

# Bytes from which on a module is hashed in a thread: hashing takes 1 to 2 ms a MB, a hop 0.2 ms.
DIGEST_IN_THREAD = 256 * 1024
# Seconds between two pauses of a thread that reads a component.
BREATH_EVERY = 0.0005
# What `register` does about imported functions that nobody provides: an error, or a trap later.
Missing: TypeAlias = Literal["error", "trap"]
TRAP: Final = "trap"
MISSING: Final[tuple[Missing, ...]] = ("error", TRAP)
# Compressing a module, in the thread that compiles it, takes 1 % of the time of that.
PACK_LEVEL: Final = 1
# Numbers of files read, and of modules hashed, at the same time. A file may be on a disk that does
# not answer, and an abandoned thread that reads it keeps its token; hashing always ends.
MAX_READS, MAX_DIGESTS = 8, 2
# A module with its custom sections may have this many times `max_wasm_size` bytes. An unstripped
# module of Rust or C++ has 5 to 10 times as many bytes of DWARF as of everything else.
CUSTOM_FACTOR = 8
# Characters of a function of a component in a message, and functions that one lists.
MAX_SIGNATURE, MAX_LISTED = 500, 20
# Bytes from which on a component is read in a thread. Reading 1 KB takes some 10 us, but 5 ms if it
# exports 100 functions.
READ_IN_THREAD = 4 * 1024
# Functions that `register_component` takes from one step of the event loop to the next: 2 to 5 ms.
AT_ONCE: Final = 20


@frozen(kw_only=True, eq=False, repr=False)
class Declaration:
    """The parameters of `register`, checked as far as possible without the module."""

    key: FunctionKey
    returns: str | tuple[str, ...] | None
    export: str
    abi: Abi | None
    """ABI that was asked for; None to recognise it by the module's exports."""
    called_on_null: bool
    hosts: Mapping[tuple[str, str], HostFunction]
    """Host functions that are given."""
    externs: Mapping[tuple[str, str], HostExtern]
    """Memories, tables and globals to give."""
    concurrency: int
    isolation: Isolation
    trap_missing: bool = False
    """Whether imported functions that nobody provides trap when they are called."""
    substitute: Substitute | None = None
    """Fake that is registered in place of the module."""
    prepare: tuple[Prepare, ...] = ()
    """Calls that are made once, before the module is compiled."""
    wasi: Wasi | None = None
    grants: Grants = NOTHING
    """What `wasi` grants, for the functions of WASI that are provided besides."""
    functions: Mapping[tuple[str, str], WitFunction] = field(factory=dict)
    """{(interface, name): function} that are given for imports of a component."""
    leaves_returns: bool = False
    """Whether `returns` was left out, and not given as None."""
    component: Taken | None = None
    """Component of which the module is a part; its types and its ABI are known then."""
    offered: Offered | None = None
    """Function of the component."""
    what: str = field(init=False, eq=False, repr=False)
    """The key, for messages."""

    @what.default
    def _name_key(self) -> str:
        return str(self.key)

    def of_component(self, component: Taken) -> Declaration:
        """Return the declaration for a function of a component, which says types and ABI itself.

        Raises:
            ExportError: the component has no such function.
            SignatureError: the function can't be used, or has other types than were given.
        """
        what = self.what
        for module, name in (*self.hosts, *self.externs):
            raise TypeError(
                f"{what}: imports[{shown(module)}][{shown(name)}] must be a function, as this is a "
                "component, which says the types of what it imports"
            )
        offered = component.find(what, self.export)
        if self.abi is not None:
            raise SignatureError(f"{what}: a component says how values cross: leave out abi")
        if self.key.args != offered.args or not (
            self.leaves_returns or self.returns == offered.returns
        ):
            raise SignatureError(
                f"{what}: the component has {shown_text(offered.wit)}: leave out args and returns, "
                f"or give args={quoted(offered.args)}, returns="
                + ("None" if offered.returns is None else f'"{offered.returns}"')
            )
        return evolve(
            self,
            export=offered.core,
            abi=component.abi,
            returns=offered.returns,
            component=component,
            offered=offered,
            prepare=tuple(_prepare_of(what, component, one) for one in self.prepare),
        )

    def of_other(self, name: str, offered: Offered) -> Declaration:
        """Return the declaration for another function of the component, with the same parameters.

        Args:
            name: its name in the cache.
            offered: the function.

        Raises:
            SignatureError: the name of a type can't be printed.
            ValueError: `name` can't be the name of a function.
        """
        return evolve(
            self,
            key=FunctionKey(check_name(name), _spelt(f"{name}: args", offered.args)),
            export=offered.core,
            returns=offered.returns,
            offered=offered,
        )

    def of_core(self) -> Declaration:
        """Return the declaration, which is for a core module.

        Raises:
            TypeError: a call of `prepare` has values without types.
        """
        for number, one in enumerate(self.prepare, 1):
            _check_values(self.key, number, one)
        for (module, name), given in self.functions.items():
            where = f"imports[{shown(module)}][{shown(name)}]"
            raise TypeError(f"{self.key}: {not_importable(where, given.fn)}")
        return self

    def hosts_for(self, info: ModuleInfo) -> dict[tuple[str, str], AnyHost]:
        """Return {(module, name): host function}, with those that are provided for the module."""
        hosts = provided(info, self.hosts, self.grants)
        return {name: host for name, host in hosts.items() if name not in self.externs}

    def given_to(self, info: ModuleInfo) -> dict[tuple[str, str], FuncType | Provided]:
        """Return what the module may import: {(module, name): type of a function, or the rest}."""
        given: dict[tuple[str, str], FuncType | Provided] = {
            name: host.type for name, host in self.hosts_for(info).items()
        }
        return given | {name: extern.provided for name, extern in self.externs.items()}

    @property
    def setup(self) -> Setup:
        """All that decides how the function runs, for `again`."""
        from .._runtime.recording import Setup

        abi, options = Setup.abi_of(self.abi)
        return Setup(
            abi,
            options,
            tuple(self.hosts.items()),
            tuple(self.externs.items()),
            self.called_on_null,
            self.trap_missing,
            len(self.prepare),
            self.wasi,
            None if self.offered is None else self.offered.export,
            tuple(self.functions),
        )

    def replaced(self, substitute: Substitute) -> Declaration:
        """Return the declaration of a fake that is registered in place of the module."""
        return evolve(self, export=substitute.export, substitute=substitute)

    def bind(self, info: ModuleInfo) -> Binding:
        """Return how the values cross, for the module; raise the ABI's errors if they can't."""
        fake = self.substitute
        if fake is not None and fake.takes_values:
            from .._abi.values import ValuesAbi

            abi: Abi = ValuesAbi(self.abi, fake.args, fake.returns)
        else:
            abi = self.abi or self.recognised(info)
            if any(memory.wide for memory in info.memories):
                from .._abi.assemblyscript import refuse_wide_memory

                refuse_wide_memory(self.what, abi)
        binding = abi.bind(
            self.what,
            self.export,
            self.key.args,
            self.results,
            exports_of(info),
            self.called_on_null,
        )
        return check_binding(self.what, binding)

    def bind_calls(self, info: ModuleInfo) -> tuple[PrepareCall, ...]:
        """Return how the values of the calls of `prepare` cross.

        Raises:
            ExportError: the module has no such function.
            SignatureError: the types differ, or can't cross.
        """
        from .preparation import PrepareCall

        made = []
        for number, one in enumerate(self.prepare, 1):
            what = f"{self.key}: call {number} of prepare"
            actual = check_export(info, what, one.export, "Prepare({})")
            types = (*one.args, *one.results)
            abi = self.abi or recognise(info, types)
            key = str(FunctionKey(one.export, one.args))
            binding = abi.bind(key, one.export, one.args, one.results, exports_of(info), False)
            binding = check_binding(what, binding)
            declared = check_crossing(what, binding.signature)
            if declared != actual:
                remedy = "other args or returns, or another abi, may fit"
                check_signature(what, one.export, declared, actual, remedy)
            made.append(PrepareCall(one, binding))
        return tuple(made)

    @property
    def results(self) -> tuple[str, ...]:
        """Types of the results."""
        return (self.returns,) if isinstance(self.returns, str) else self.returns or ()

    def recognised(self, info: ModuleInfo) -> Abi:
        """Return the ABI that the module's exports indicate, for these types."""
        return recognise(info, (*self.key.args, *self.results))


@final
class Source:
    """What `register` was given, once it is read."""

    __slots__ = ("component", "substitute", "wasm")

    def __init__(self, wasm: bytes, component: Taken | None, substitute: Substitute | None) -> None:
        self.wasm = wasm
        """The core module: that of the component, if it is one."""
        self.component = component
        self.substitute = substitute
        """Fake that is registered in its place."""

    def types(
        self, name: str, export: str | None, returns: str | Sequence[str] | Inferred | None
    ) -> tuple[Sequence[str], str | Sequence[str] | Inferred | None]:
        """Return the types of a function, which were left out.

        Args:
            name: name of the function.
            export: name of the export; None: the same as `name`.
            returns: type of the result; `INFERRED` if it was left out, too.

        Raises:
            ExportError: there is no such function.
            SignatureError: it can't be used.
            TypeError: it is a core module, which does not say the types of values.
        """
        fake = self.substitute
        if fake is not None:
            if fake.args is None:
                raise TypeError(
                    f"{name}: args was left out, and the fake does not say them either: give args "
                    "to FakeEngine.function, as those of the component's function"
                )
            return fake.args, fake.returns if returns is INFERRED else returns
        if self.component is None:
            raise TypeError(
                f"{name}: args was left out, but only components say the types of their functions, "
                'and this is a core module: give them, such as args=("i64",), returns="i64" '
                "(`python -m trio_wasmcache inspect FILE` shows those of its exports)"
            )
        return self.component.find(name, name if export is None else export).args, returns


def _check_values(key: FunctionKey, number: int, one: Prepare) -> None:
    if len(one.values) != len(one.args):
        raise TypeError(
            f"{key}: call {number} of prepare, {one}, gives {len(one.values)} values for "
            f"args ({', '.join(one.args)}): give one for each, such as "
            f'Prepare({one.export!r}, args=("i64",), values=(1,))'
        )


def _prepare_of(what: str, component: Taken, one: Prepare) -> Prepare:
    """Return a call of `prepare` with the types that the component says, and the core export."""
    offered = component.find(f"{what}: prepare", one.export)
    if len(one.values) != len(offered.args):
        raise SignatureError(
            f"{what}: {one} of prepare gives {len(one.values)} values, but the component has "
            f"{shown_text(offered.wit)}"
        )
    if one.args not in ((), offered.args) or one.returns not in (None, offered.returns):
        raise SignatureError(
            f"{what}: {one} of prepare: the component has {shown_text(offered.wit)}: leave out "
            "args and returns"
        )
    return evolve(one, export=offered.core, args=offered.args, returns=offered.returns)


def shown_text(text: str) -> str:
    """Return a text of a component's, cut for a message."""
    return printable(text, MAX_SIGNATURE)


def declare(
    *,
    name: object,
    args: Sequence[str],
    returns: str | Sequence[str] | Inferred | None,
    export: str | None,
    abi: object,
    called_on_null: bool,
    imports: Mapping[str, Mapping[str, Any]] | None,
    wasi: Wasi | None,
    prepare: Sequence[Prepare],
    concurrency: int,
    isolation: Isolation,
    missing: Missing,
    replace: object,
    max_instances: int,
) -> Declaration:
    """Check the parameters of `InstanceCache.register`; raise the errors that it documents."""
    key = FunctionKey(check_name(name), _spelt(f"{name}: args", args))
    given: str | tuple[str, ...] | None
    if returns is None or returns is INFERRED or isinstance(returns, str):
        given = normalise_type(returns) if isinstance(returns, str) else None
    else:
        given = _spelt(f"{key}: returns", returns)
    chosen = check_abi(str(key), abi)
    if isolation not in ISOLATIONS:
        raise ValueError(
            f"{key}: unknown isolation {shown(isolation)}; there is "
            f"{', '.join(map(repr, ISOLATIONS))}"
        )
    if missing not in MISSING:
        raise ValueError(
            f"{key}: missing must be {' or '.join(map(repr, MISSING))}, got {missing!r:.100}"
        )
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        raise TypeError(f"{key}: concurrency must be an int, got {shown(concurrency)}")
    concurrency = operator.index(concurrency)
    if not 1 <= concurrency <= max_instances:
        raise ValueError(
            f"{key}: concurrency must be from 1 to max_instances = {max_instances}, "
            f"got {concurrency}"
        )
    if export is not None and not isinstance(export, str):
        raise TypeError(f"{key}: export must be a str, got {shown(export)}")
    if not isinstance(called_on_null, bool):
        raise TypeError(f"{key}: called_on_null must be True or False, got {shown(called_on_null)}")
    if not isinstance(replace, bool):
        raise TypeError(f"{key}: replace must be True or False, got {shown(replace)}")
    if not isinstance(prepare, (tuple, list)):
        raise TypeError(
            f"{key}: prepare must be a sequence of Prepare, such as (Prepare(...),), got "
            f"{shown(prepare)}"
        )
    for number, one in enumerate(prepare, 1):
        if not isinstance(one, Prepare):
            raise TypeError(
                f'{key}: prepare must be calls such as Prepare("init"), one is {shown(one)}'
            )
        if one.args:  # else it may be a component that says them
            _check_values(key, number, one)
    rest, functions = plain_functions(imports)
    try:
        grants = grants_for(wasi)
        hosts, externs = flatten(rest)
    except TypeError as error:
        raise TypeError(f"{key}: {error}") from None
    if not (isinstance(chosen, LayeredAbi) and chosen.takes_blocks):
        for name, host in hosts.items():
            if host.blocks:
                raise SignatureError(
                    f"{key}: the HostFunction for {import_name(*name)} has str or bytes among its "
                    'types, which only plugins of Extism (abi="extism") can pass: take the address '
                    "and the length as i32, and read the bytes by current_lease().memory"
                )
    return Declaration(
        key=key,
        returns=given,
        export=key.name if export is None else str.__str__(export),
        abi=chosen,
        called_on_null=called_on_null,
        hosts=hosts,
        externs=externs,
        concurrency=concurrency,
        isolation=isolation,
        trap_missing=missing == TRAP,
        prepare=tuple(prepare),
        wasi=wasi,
        grants=grants,
        leaves_returns=returns is INFERRED,
        functions=functions,
    )


def _spelt(what: str, names: Iterable[str]) -> tuple[str, ...]:
    types = normalise_types(names, what)
    for name in types:
        # Names of types end up in the log, and an ABI of the user's own may accept any.
        if not name.isprintable():
            raise SignatureError(f"{what}: {name!r:.100} can't be the name of a type")
    return types


async def read_source(
    engine: Engine,
    what: str,
    source: bytes | str | os.PathLike[str],
    limit: int,
    readers: trio.CapacityLimiter,
) -> bytes:
    """Return a module's bytes, given as bytes, WAT text, or a path.

    A `str` is always text: it may come from a tenant, who must not read or probe files by it.

    Args:
        engine: the engine that converts text.
        what: the function's name, for messages.
        source: the bytes, text or path.
        limit: `max_wasm_size` (bytes): largest size of text, and of a module without its custom
            sections; with them, it may have `CUSTOM_FACTOR` times as many.
        readers: limiter of the threads that read files.

    Raises:
        InvalidModuleError: the text, or that in the file, is wrong.
        ModuleTooLargeError: the module or the text is larger.
        OSError: the file can't be read; `FileNotFoundError` if there is none.
        TypeError: `source` is none of these, or a `str` that is no WebAssembly text.
        ValueError: the path can't be the name of a file.

    **Checkpoint:** unless bytes are given.
    **Cancellation:** a thread that reads is abandoned.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source)  # a subclass may override `__len__` and others
        if view.nbytes > CUSTOM_FACTOR * limit:
            check_format(what, view.cast("B")[:LOOKED_AT].tobytes())
        check_size(what, view.nbytes, limit)
        return check_core(what, view.tobytes(), limit)
    if isinstance(source, str):
        source = str.__str__(source)  # likewise
        if source.lstrip()[:1] not in ("(", ";"):
            raise TypeError(
                f"{what}: a str must be WebAssembly text, which begins with '(' or ';', got "
                f"{shown(source)}; to read a file, pass pathlib.Path(...)"
            )
        return await _from_text(engine, what, source, limit)
    if not isinstance(source, os.PathLike):
        raise TypeError(
            f"{what}: wasm must be bytes, WebAssembly text (a str), or a path to a file "
            f"(pathlib.Path), got {shown(source)}"
        )
    path = Path(os.fsdecode(source))
    try:
        data = await run_in_thread(
            read_file, what, path, limit, abandon_on_cancel=True, limiter=readers
        )
    except OSError as error:
        error.add_note(f"while the module of {what} was being read")
        raise
    except ValueError as error:  # such as a zero in it
        raise ValueError(f"{what}: {shown(path)} can't be the name of a file: {error}") from None
    if data[:4] != HEADER[:4] and data.lstrip()[:1] in (b"(", b";"):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise InvalidModuleError(f"{what}: {shown(path)} is no text: {error}") from error
        return await _from_text(engine, what, text, limit)
    return check_core(what, data, limit)


async def _from_text(engine: Engine, what: str, text: str, limit: int) -> bytes:
    check_text(what, text, limit)
    try:
        wasm = await engine.to_wasm(text)
    except InvalidModuleError as error:
        raise InvalidModuleError(f"{what}: {error}") from None
    # A character of a name may take four bytes.
    return check_core(what, wasm, limit)


def check_format(what: str, data: bytes) -> None:
    """Raise `InvalidModuleError` if data that is too large is known to be no module at all."""
    if (found := known_format(data)) is not None:
        raise InvalidModuleError(f"{what}: {ForeignFormatError(found)}")


def check_size(what: str, size: int, limit: int, *, more: bool = False) -> None:
    """Raise `ModuleTooLargeError` if a module is too large with its custom sections.

    Args:
        what: the function's name, for messages.
        size: bytes of the module.
        limit: `max_wasm_size` (bytes).
        more: whether the module has more bytes than the `size` that was read.
    """
    if size > CUSTOM_FACTOR * limit:
        raise ModuleTooLargeError(
            f"{what}: the module has {'at least ' * more}{size} bytes with its custom sections, "
            f"more than {CUSTOM_FACTOR} times max_wasm_size = {limit}: strip the module of its "
            "debug sections, or raise max_wasm_size"
        )


def check_text(what: str, text: str, limit: int) -> None:
    """Raise `ModuleTooLargeError` if WebAssembly text is longer than `max_wasm_size`."""
    if len(text) > limit:
        raise ModuleTooLargeError(
            f"{what}: the text has {len(text)} characters, max_wasm_size is {limit}: raise it, or "
            "give the module in its binary form"
        )


def check_core(what: str, wasm: bytes, limit: int) -> bytes:
    """Return a module that is not too large without its custom sections.

    What is no module passes: it is refused, by a better name, as soon as it is read.
    """
    if wasm[: len(HEADER)] == HEADER and len(wasm) > limit:
        size = len(wasm) - custom_size(find_custom_sections(wasm))
        if size > limit:
            raise ModuleTooLargeError(
                f"{what}: the module has {size} bytes without its custom sections, max_wasm_size "
                f"is {limit}: raise it, or build the module for size (wasm-opt -Oz)"
            )
    return wasm


def read_file(what: str, path: Path, limit: int) -> bytes:
    """Return the bytes of a file, and no more than `register` takes. Blocks: for threads.

    Args:
        what: the function's name, for messages.
        path: the file.
        limit: `max_wasm_size` (bytes).

    Raises:
        InvalidModuleError: the file is too large, and no module.
        ModuleTooLargeError: the file is too large.
        OSError: the file can't be read.
        ValueError: the path can't be the name of a file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size > CUSTOM_FACTOR * limit:
            check_format(what, file.read(LOOKED_AT))
        check_size(what, size, limit)
        data = file.read(CUSTOM_FACTOR * limit + 1)
    # The file may have grown since, or be a device.
    check_size(what, len(data), limit, more=True)
    return data


@final
@frozen(cache_hash=True, repr=False)
class ModuleKey:
    """Key of a compiled module: functions whose keys are equal share one module."""

    digest: bytes
    imports: frozenset[tuple[tuple[str, str], HostFunction | HostExtern | WitFunction]]
    grants: Grants
    memory_limit: int
    table_limit: int
    prepared: bool = False
    """Whether it was prepared for resets, which adds exports and a restorer to it."""
    trap_missing: bool = False
    """Whether what its imports lack was filled with traps."""
    layered: Hashable = None
    """What decides which generated parts are around it, beside the host functions."""
    preparation: Hashable = None
    """What its instances begin with: the calls of `prepare`, and all that decides what they do."""
    tier: Tier | None = None
    """Which compiler made it, with ``compiler="tiered"``; None: there is one only."""


@final
class ModuleRecipe:
    """What is needed to compile a module once more: a `Recipe`."""

    __slots__ = ("config", "declaration", "key", "packed", "prepared")

    def __init__(
        self,
        key: ModuleKey,
        packed: bytes,
        declaration: Declaration,
        config: CacheConfig,
        prepared: Prepared | None,
    ) -> None:
        self.key = key
        self.packed = packed
        """The module, compressed."""
        self.declaration = declaration
        self.config = config
        self.prepared = prepared

    @property
    def size(self) -> int:
        """Bytes that are kept for it."""
        return len(self.packed) + (0 if self.prepared is None else self.prepared.size)

    def unpack(self) -> bytes:
        """Return the module. That takes some 3 ms a MB, without the GIL."""
        return zlib.decompress(self.packed)


@final
class Compiling:
    """A compile under way, and the number of tasks that wait for it."""

    __slots__ = (
        "binding",
        "booking",
        "done",
        "error",
        "module",
        "scope",
        "seconds",
        "turn",
        "waiting",
    )

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.waiting = 0
        self.booking: Booking | None = None
        """The books of the instance that is prepared for it; None: none is."""
        self.module: CachedModule | None = None
        self.binding: Binding | None = None
        """How values of the function cross for which it compiles, if its module says so itself."""
        self.error: Exception | None = None
        self.seconds = 0.0


@final
class Compiler:
    """Compiles each module once, however many tasks register it at the same time, and shares it."""

    __slots__ = (
        "_compiling",
        "_digests",
        "_functions",
        "_next_number",
        "engine",
        "lend",
        "modules",
        "nursery",
        "pool",
        "readers",
    )

    def __init__(
        self,
        engine: Engine,
        nursery: trio.Nursery,
        pool: Pool,
        lend: Callable[[GroupState, FunctionKey, Preparing], object],
    ) -> None:
        self.engine: Engine = engine
        self.nursery: trio.Nursery = nursery
        self.pool: Pool = pool
        self.lend: Callable[[GroupState, FunctionKey, Preparing], object] = lend
        """Returns the result of `current_lease` in host functions that a preparation calls."""
        self.modules: dict[Hashable, CachedModule] = {}
        """{key: module} of the registered functions; see `ModuleKey`."""
        self.readers: trio.CapacityLimiter = trio.CapacityLimiter(MAX_READS)
        self._digests: trio.CapacityLimiter = trio.CapacityLimiter(MAX_DIGESTS)
        self._functions: dict[CachedModule, int] = {}  # {module: functions that use it}
        self._compiling: dict[ModuleKey, Compiling] = {}
        self._next_number: Callable[[], int] = itertools.count(1).__next__

    async def get(
        self, wasm: bytes, declaration: Declaration, config: CacheConfig, group: GroupState
    ) -> tuple[CachedModule, Binding, float]:
        """Return the compiled module, how values cross, and the seconds that compiling took.

        The seconds are 0.0 if the module existed. It is compiled in a turn of `group`, or of
        another group that waits for the same module.

        The module is shared only if the caller calls `keep` for it in the same step.

        **Checkpoint:** always.
        **Cancellation:** the compile goes on if another task waits for it, else it is abandoned. A
        guest that is prepared is stopped within a slice.
        """
        resets = declaration.isolation == RESET
        component = declaration.component
        digest = component.digest if component else await _digest(wasm, self._digests)
        key_in = functools.partial(
            ModuleKey,
            digest,
            frozenset(
                [
                    *declaration.hosts.items(),
                    *declaration.externs.items(),
                    *declaration.functions.items(),
                ]
            ),
            declaration.grants,
            config.memory_limit,
            config.table_limit,
            trap_missing=declaration.trap_missing,
            layered=declaration.abi if isinstance(declaration.abi, LayeredAbi) else None,
            preparation=_preparation(declaration, config),
        )
        plain = key_in(tier=OPTIMIZING if config.compiler == TIERED else None)
        module = self._find(plain, declaration)
        if module is None and config.compiler == TIERED:
            plain = key_in(tier=BASELINE)
            module = self._find(plain, declaration)
        key = evolve(plain, prepared=True) if resets else plain
        if module is not None:
            await trio.lowlevel.checkpoint()
            return module, self._check(module.artifact.info, declaration), 0.0
        while True:
            job = self._compiling.get(key)
            mine = job is None
            if job is None:
                job = self._compiling[key] = Compiling(self.engine.turn(group))
                name = "a compile"
                if key.preparation is not None:
                    from .preparation import Booking

                    job.booking = Booking(self.pool, group, declaration.key)
                    name = f"the preparation of {declaration.key}"
                self.nursery.start_soon(self._run, key, job, wasm, declaration, config, name=name)
            job.turn.join(group)
            await self._wait(key, job)
            if job.error is None or mine:
                break
            # The compile of another declaration failed, maybe because of that declaration: try
            # again with ours, so that the error is about ours.
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # the error's traceback has this frame: see `_threads`
        if job.module is None:
            raise trio.ClosedResourceError(f"the cache was closed while {declaration.key} compiled")
        binding = job.binding if mine else None
        if binding is None:
            binding = self._check(job.module.artifact.info, declaration)
        # Another registration may have been first, and its function may have been removed since.
        module = self.modules.get(job.module.key, job.module)
        module.learn(job.module.why_not)
        return module, binding, job.seconds

    async def take_apart(
        self, what: str, wasm: bytes, config: CacheConfig
    ) -> tuple[bytes, Taken | None]:
        """Return a module as it is and None; or the core module of a component, and the rest of it.

        Raises:
            InvalidModuleError: the component is damaged, or uses something that is not supported.
            ModuleTooLargeError: it has too much of something.

        **Checkpoint:** if it is a component.
        **Cancellation:** the thread is abandoned.
        """
        if not is_component(wasm):
            return wasm, None
        limit = config.max_wasm_size
        if len(wasm) < READ_IN_THREAD and _can_take_apart():
            await trio.lowlevel.checkpoint()
            return _take_apart(what, wasm, limit, lambda: None)
        breathe = Breath(BREATH_EVERY)
        return await run_in_thread(
            _take_apart, what, wasm, limit, breathe, abandon_on_cancel=True, limiter=self._digests
        )

    async def optimize(self, module: CachedModule) -> tuple[CachedModule, float]:
        """Compile a module, whose `recipe` is there, by the optimizing compiler, in the background.

        Returns:
            The compiled module, of which `keep` must be called in the same step; and the seconds
            that compiling took, 0.0 if it existed.

        Raises:
            InvalidModuleError: it can't be compiled, or not within the limits.
            LoadError: its instances could be reset, and now could not.
            NoMemoryError: the system has no memory for it.
            trio.ClosedResourceError: the engine was closed.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, and what it makes is dropped.
        """
        recipe, turn = module.recipe, self.engine.compile_slots.background
        assert isinstance(recipe, ModuleRecipe)
        plain = evolve(recipe.key, tier=OPTIMIZING, prepared=False)
        found = self._find(plain, recipe.declaration)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found, 0.0
        key = evolve(recipe.key, tier=OPTIMIZING)
        began = trio.current_time()
        made = await self._remake(key, recipe, turn, module)
        seconds = trio.current_time() - began
        if made.why_not is not None and module.why_not is None:
            raise LoadError(
                f"{recipe.declaration.key}: its instances can't be reset with optimized code: "
                f"{made.why_not}"
            )
        if (note := _tier_key(key, recipe.config)) is not None:
            await self.engine.keep_state(note, OPTIMIZING.value.encode())
        # An equal function may have been registered meanwhile.
        return self.modules.get(made.key, made), seconds

    async def sample(self, module: CachedModule, group: GroupState) -> tuple[CachedModule, float]:
        """Compile a variant of a module that takes samples, by the same compiler.

        Args:
            module: the module.
            group: the group in whose turn it is compiled.

        Returns:
            The variant, of which `keep` must be called in the same step; and the seconds that
            compiling took, 0.0 if it existed.

        Raises:
            LookupError: the bytes of the module are not kept any more.
            InvalidModuleError: it can't be compiled, or not within the limits.
            LoadError: its instances could be reset, and now could not.
            NoMemoryError: the system has no memory for it.
            trio.ClosedResourceError: the engine was closed.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, and what it makes is dropped.
        """
        source = module.source
        if source is None:
            raise LookupError(
                "its bytes are not kept any more, as other modules needed the memory: register it "
                "again"
            )
        assert isinstance(source, ModuleRecipe)
        assert isinstance(module.key, ModuleKey)
        key = evolve(module.key, tier=PROFILED[module.artifact.tier])
        found = self.modules.get(key)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found, 0.0
        began = trio.current_time()
        made = await self._remake(key, source, self.engine.turn(group), module)
        if made.why_not is not None and module.why_not is None:
            raise LoadError(
                f"its instances can't be reset with code that takes samples: {made.why_not}"
            )
        made.forget_debug_sections()  # the module has them
        made.source = None
        return self.modules.get(made.key, made), trio.current_time() - began

    async def _remake(
        self, key: ModuleKey, recipe: ModuleRecipe, turn: AnyTurn, module: CachedModule
    ) -> CachedModule:
        """Compile a module once more, as another."""
        if len(recipe.packed) < DIGEST_IN_THREAD:
            wasm = recipe.unpack()
        else:
            unpack, limiter = recipe.unpack, self._digests
            wasm = await run_in_thread(unpack, limiter=limiter, abandon_on_cancel=True)
        declaration, config, prepared = recipe.declaration, recipe.config, recipe.prepared
        made, _ = await self._make(
            key, wasm, declaration, config, turn, prepared, module, recipe.packed
        )
        return made

    def _find(self, plain: ModuleKey, declaration: Declaration) -> CachedModule | None:
        """Return the module if a function uses it, whether or not something is missing."""
        module = self._known(plain, declaration)
        if module is None and plain.trap_missing:  # maybe nothing is missing
            module = self._known(evolve(plain, trap_missing=False), declaration)
        return module

    def _known(self, plain: ModuleKey, declaration: Declaration) -> CachedModule | None:
        """Return the module if a function uses it, prepared if the declaration asks for that."""
        resets = declaration.isolation == RESET
        module = self.modules.get(evolve(plain, prepared=True) if resets else plain)
        if module is None and resets:
            module = self._unresettable(plain, declaration)
        return module

    def _unresettable(self, plain: ModuleKey, declaration: Declaration) -> CachedModule | None:
        """Return the module without preparation for resets, if it is known to be impossible."""
        module = self.modules.get(plain)
        if module is None:
            return None
        if module.why_not is None:
            artifact = module.artifact
            module.learn(_obstacle(artifact.info, declaration, module.initialize, *artifact.others))
        return None if module.why_not is None else module

    async def _wait(self, key: ModuleKey, job: Compiling) -> None:
        task, booking = trio.lowlevel.current_task(), job.booking
        if booking is not None:
            booking.join(task)
        job.waiting += 1
        try:
            await job.done.wait()
        finally:
            job.waiting -= 1
            if booking is not None:
                booking.leave(task)
            if job.waiting == 0 and not job.done.is_set():
                job.scope.cancel()
                if self._compiling.get(key) is job:
                    del self._compiling[key]
                # A compile is abandoned at once; a guest that is prepared stops within a slice.
                with trio.CancelScope(shield=True):
                    await job.done.wait()

    async def bind_all(
        self, module: CachedModule, declarations: Sequence[Declaration]
    ) -> list[Binding]:
        """Return how the values of functions of a compiled module cross; see `get` for errors.

        **Checkpoint:** every `AT_ONCE` functions.
        **Cancellation:** nothing is left behind.
        """
        info, found = module.artifact.info, list[Binding]()
        for one in declarations:
            found.append(self._check(info, one))
            if len(found) % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return found

    def keep(self, module: CachedModule) -> None:
        """Count one more function that uses `module`."""
        self._functions[module] = self._functions.get(module, 0) + 1
        self.modules[module.key] = module
        self.pool.debug_book.add(module)
        self.pool.source_book.add(module)

    def drop(self, module: CachedModule) -> None:
        """Count one function fewer that uses `module`; after the last one, forget the module."""
        self._functions[module] -= 1
        if not self._functions[module]:
            del self._functions[module], self.modules[module.key]
            self.pool.debug_book.remove(module)
            self.pool.source_book.remove(module)

    @trio.lowlevel.enable_ki_protection
    async def _run(
        self,
        key: ModuleKey,
        job: Compiling,
        wasm: bytes,
        declaration: Declaration,
        config: CacheConfig,
    ) -> None:
        began, booking = trio.current_time(), job.booking
        try:
            with job.scope:
                prepared = None
                if booking is not None:
                    from .preparation import Preparing

                    preparing = Preparing(
                        self.pool.runtime,
                        self.pool.lines,
                        config,
                        booking,
                        self.engine.system,
                    )
                    lease = self.lend(booking.group, declaration.key, preparing)
                    prepared = await self._prepare(
                        key.digest, wasm, declaration, config, job.turn, preparing, lease
                    )
                    began = trio.current_time()
                job.module, job.binding = await self._make(
                    key, wasm, declaration, config, job.turn, prepared
                )
                job.seconds = trio.current_time() - began
        except InvalidModuleError as error:
            job.error = InvalidModuleError(f"{declaration.key}: {error}")
        except ExcessiveModuleError as error:
            job.error = ModuleTooLargeError(f"{declaration.key}: {error}")
        except Exception as error:
            job.error = error
        finally:
            job.done.set()
            if self._compiling.get(key) is job:
                del self._compiling[key]
            del job  # of which the error's traceback has this frame

    async def _make(
        self,
        key: ModuleKey,
        wasm: bytes,
        declaration: Declaration,
        config: CacheConfig,
        turn: AnyTurn,
        prepared: Prepared | None,
        earlier: CachedModule | None = None,
        packed: bytes = b"",
    ) -> tuple[CachedModule, Binding | None]:
        """Compile a module, and return how values cross, too, unless that is to be checked again.

        `earlier` is the same module of another compiler, which has what it has not. `packed` is the
        module, compressed; empty: it is not there yet.
        """
        found: list[tuple[Linkage, ModuleInfo, Binding]] = []
        packs = [packed]
        wanted = tier = key.tier
        if tier is BASELINE and (note := _tier_key(key, config)) is not None:
            # Its optimized code is in `cache_dir`, unless that has become too small.
            tier = BASELINE if await self.engine.find_state(note) is None else OPTIMIZING

        def admit(info: ModuleInfo) -> Edits | Graph:
            check_counts(info, declaration.what, config.table_limit)
            # Here, and not once more below: making trampolines may take long, and this is a thread.
            if not packed:
                bare = without_trailing_sections(wasm) if info.has_custom_sections else wasm
                packs.append(zlib.compress(bare, PACK_LEVEL))
            imports, binding = _find_imports(info, declaration), self._check(info, declaration)
            found.append((imports, info, binding))
            return self._admit(wasm, info, imports, declaration, config, prepared)

        artifact = await self.engine.compile(wasm, admit, turn, tier)
        info, (imports, read, binding) = artifact.info, found[-1]
        if wanted is not None and wanted is not artifact.tier:
            key = evolve(key, tier=artifact.tier)
        source = ModuleRecipe(key, packs[-1], declaration, config, prepared)
        recipe = source if wanted is not None and artifact.tier is BASELINE else None
        if declaration.trap_missing and not imports.missing:
            key = evolve(key, trap_missing=False)
        initialize = _starts(info, declaration) if prepared is None else ()
        why_not = None
        if declaration.isolation == RESET:
            why_not = _obstacle(info, declaration, initialize, *artifact.others)
        if artifact.edits.reset:
            artifact = await self.engine.prove(artifact, imports.native, initialize, turn)
            why_not = artifact.obstacle
        hidden = any(hides_globals(one) for one in (info, *artifact.others))
        if why_not is not None and not (artifact.edits.reset and hidden):
            # The preparation failed and has not changed the code: any isolation can use it.
            key = evolve(key, prepared=False)
        if earlier is not None:
            artifact = evolve(artifact, debug=earlier.debug_sections)
        hosts, recorder = imports.hosts, self.pool.runtime.recorder
        if recorder is not None:
            hosts = recorder.wrap(hosts, imports.titles)
        made = CachedModule(
            key,
            key.digest.hex(),
            self.engine,
            artifact,
            hosts,
            imports.native,
            why_not=why_not,
            initialize=initialize,
            number=self._next_number(),
            prepared=None if prepared is None else prepared.bare(),
            recipe=recipe,
            source=source,
        )
        if earlier is not None:
            made.take_news()  # which were told of the earlier one
        return made, binding if info is read else None

    async def _prepare(
        self,
        digest: bytes,
        wasm: bytes,
        declaration: Declaration,
        config: CacheConfig,
        turn: Turn,
        preparing: Preparing,
        lease: object,
    ) -> Prepared:
        """Make the calls of `prepare`, in an instance of the module as it was given.

        If that was done before, maybe by another process, what it came to may be in `cache_dir`.
        """
        from .._core.wasm.preparation import UnfreezableError

        key = _state_key(digest, declaration, config)
        packed = None if key is None else await self.engine.find_state(key)
        if packed is not None:
            with contextlib.suppress(ValueError):  # as if it had not been there
                return Prepared.unpack(packed)
        found: list[tuple[Linkage, tuple[PrepareCall, ...]]] = []

        def admit(info: ModuleInfo) -> Edits | Graph:
            check_counts(info, declaration.what, config.table_limit)
            imports, calls = _find_imports(info, declaration), declaration.bind_calls(info)
            found.append((imports, calls))
            plain = evolve(declaration, isolation=REUSE)
            self._check(info, plain)
            admitted = self._admit(wasm, info, imports, plain, config, None)
            try:
                return _observed(wasm, info, admitted)
            except UnfreezableError as error:
                raise LoadError(f"{declaration.key} can't be prepared: {error}") from None

        artifact = await self.engine.compile(wasm, admit, turn)
        imports, calls = found[-1]
        names = (import_name(*name) for name in imports.names)
        hosts = tuple(preparing.watched(next(names, OWN), host) for host in imports.hosts)
        module = CachedModule(
            object(),
            digest.hex(),
            self.engine,
            artifact,
            hosts,
            imports.native,
            initialize=_starts(artifact.info, declaration),
            number=self._next_number(),
        )
        prepared = await preparing.run(module, calls, lease)
        if key is not None and (packed := prepared.pack()) is not None:
            await self.engine.keep_state(key, packed)
        return prepared

    def _admit(
        self,
        wasm: bytes,
        info: ModuleInfo,
        imports: Linkage,
        declaration: Declaration,
        config: CacheConfig,
        prepared: Prepared | None,
    ) -> Edits | Graph:
        what = declaration.what
        layers = imports.layers
        parts = [part for layer in layers for part in (*layer.parts, *layer.after)]
        starts = _starts(info, declaration) if prepared is None else ()
        states = {} if prepared is None else prepared.states
        obstacle = _obstacle(
            _written(info, states.get(USER)),
            declaration,
            starts,
            *(_written(part.info, states.get(part.name)) for part in parts),
        )
        resets = declaration.isolation == RESET and obstacle is None
        limits = config.memory_limit, config.table_limit
        more = MoreEdits(
            heap_size=heap_size(info, config.memory_limit, config.instance_stack_size),
            initials=initials_of(info, declaration.given_to(info)),
            reset=resets,
            dumped=config.keep_dumps > 0,
        )
        component = declaration.component
        if not layers and component is None:
            edits = check_limits(info, what, *limits, **more)
            return edits if prepared is None else _prepared_edits(edits, USER, prepared)
        from .._core.wasm.graph import join_layers, limit_graph

        graph = limit_graph(
            join_layers(
                wasm,
                info,
                layers,
                imports.indexes,
                offset=0 if component is None else component.offset,
            ),
            what,
            *limits,
            **more,
        )
        if prepared is None:
            return graph
        return evolve(
            graph,
            parts=tuple(
                evolve(
                    part,
                    edits=_prepared_edits(part.edits, part.name, prepared),
                    constant=part.constant and part.name not in states,
                )
                for part in graph.parts
            ),
        )

    def _check(self, info: ModuleInfo, declaration: Declaration) -> Binding:
        """Check a declaration against the module, and return how values cross.

        Every function that shares a module does this.

        Raises:
            ExportError: the module has no such function.
            SignatureError: the types differ, or can't cross.
        """
        what = declaration.what
        actual = check_export(info, what, declaration.export)
        binding = declaration.bind(info)
        declared = check_crossing(what, binding.signature)
        if declared != actual:
            remedy = _remedy(info, declaration, binding, actual)
            check_signature(what, declaration.export, declared, actual, remedy)
        return binding


def _can_take_apart() -> bool:
    """Return whether what reads components is imported, which takes some 20 ms, for threads."""
    return f"{__package__}.components" in sys.modules


def _take_apart(
    what: str, wasm: bytes, limit: int, breathe: Callable[[], object]
) -> tuple[bytes, Taken | None]:
    with importing:
        from .components import take_apart

        import_late(len(wasm))
    return take_apart(what, wasm, limit, breathe)


def _tier_key(key: ModuleKey, config: CacheConfig) -> str | None:
    """Return the key of a note that the optimized code of a module is in `cache_dir`.

    None: there is no such folder. If modules of one key differ all the same, one that has no such
    code is compiled by the optimizing compiler at once.
    """
    if config.cache_dir is None:
        return None
    return digest_of(
        "optimized",
        library_versions(),
        key.digest,
        (key.memory_limit, key.table_limit, config.instance_stack_size, key.prepared),
        key.preparation is not None,
    ).hex()


def _state_key(digest: bytes, declaration: Declaration, config: CacheConfig) -> str | None:
    """Return the key of what a preparation comes to; None: it is not to be kept on disk.

    Of host functions only the names are known, so nothing is kept if one of them is called.
    """
    from .._core.wasm.preparation import FORMAT as STATE_FORMAT

    wasi = declaration.wasi
    granted: tuple[object, ...] = ()
    if wasi is not None:
        outputs = wasi.stdout, wasi.stderr, wasi.clock
        if wasi.env or wasi.stdin or any(map(callable, outputs)):
            return None
        granted = wasi.args, wasi.random, wasi.clock
    externs = [(name, one.provided) for name, one in declaration.externs.items()]
    try:
        return digest_of(
            STATE_FORMAT,
            library_versions(),
            digest,
            declaration.prepare,
            declaration.abi,
            granted,
            sorted(declaration.hosts),
            sorted(externs, key=operator.itemgetter(0)),
            declaration.trap_missing,
            (
                config.memory_limit,
                config.table_limit,
                config.total_fuel,
                config.instance_stack_size,
            ),
        ).hex()
    except UnknownValueError:
        return None


async def _digest(wasm: bytes, limiter: trio.CapacityLimiter) -> bytes:
    if len(wasm) < DIGEST_IN_THREAD:
        return hashlib.sha256(wasm).digest()
    digest = await run_in_thread(lambda: hashlib.sha256(wasm).digest(), limiter=limiter)
    # A thread that hashes is not abandoned; the cache may have been closed meanwhile.
    await trio.lowlevel.checkpoint_if_cancelled()
    return digest


def _remedy(info: ModuleInfo, declaration: Declaration, binding: Binding, actual: FuncType) -> str:
    """Return what to declare for an export whose type is not the declared one."""
    left_out = declaration.returns is None and actual.results
    abi = declaration.abi or declaration.recognised(info)
    if isinstance(abi, Plain) and isinstance(binding, PlainAbi):
        fixes = []
        params = fitting(binding.args, actual.params)
        results = fitting(binding.returns, actual.results)
        if actual.params != binding.signature.params:
            fixes.append(f"args={quoted(params)}")
        if actual.results != binding.signature.results:
            returns = "None" if not results else written(results[0])
            fixes.append(f"returns={quoted(results) if len(results) > 1 else returns}")
        return f"give {', '.join(fixes)}{' (it was left out)' if left_out else ''}"
    if left_out:
        return "give returns=, the type of its result (it was left out)"
    if actual.results != binding.signature.results:
        return "other returns, or another abi, may fit"
    return "other args, or another abi, may fit"


def _starts(info: ModuleInfo, declaration: Declaration) -> tuple[StartCall, ...]:
    """Return the exports that are called when an instance starts."""
    abi = declaration.abi
    starts = abi.starts(info) if isinstance(abi, LayeredAbi) else None
    if starts is not None:
        return starts
    return ((INITIALIZE, ()),) if _is_reactor(info) else ()


def _is_reactor(info: ModuleInfo) -> bool:
    found = info.export(INITIALIZE)
    return (
        found is not None
        and found.kind == "func"
        and info.functions[found.index] == FuncType((), ())
    )


def _obstacle(
    info: ModuleInfo,
    declaration: Declaration,
    initialize: Sequence[StartCall],
    *others: ModuleInfo,
) -> str | None:
    started = info.start is not None or bool(initialize)
    return obstacle(info, started, {*declaration.hosts}, *others)


def _written(info: ModuleInfo, state: FrozenState | None) -> ModuleInfo:
    """Return what a module declares as far as it decides whether instances can be reset."""
    if state is None:
        return info
    return evolve(
        info,
        start=None,
        passive_data=info.passive_data - len(state.dropped_data),
        passive_elements=info.passive_elements - len(state.dropped_elements),
    )


def _prepared_edits(edits: Edits, part: str, prepared: Prepared) -> Edits:
    abi_state = prepared.abi_state if part == USER else {}
    return evolve(edits, state=prepared.states.get(part), abi_state=abi_state)


def _observed(wasm: bytes, info: ModuleInfo, admitted: Edits | Graph) -> Edits | Graph:
    """Return the edits of a module whose instance is to be prepared.

    A trampoline has no state: see `_core/wasm/trampoline`.

    Raises:
        UnfreezableError: its state can't be read.
    """
    from .._core.wasm.preparation import observe
    from .._core.wasm.trampoline import TRAMPOLINE

    if isinstance(admitted, Edits):
        return evolve(admitted, observed=observe(wasm, info))
    return evolve(
        admitted,
        parts=tuple(
            part
            if part.name == TRAMPOLINE
            else evolve(
                part,
                edits=evolve(part.edits, observed=observe(part.wasm, part.info)),
                constant=False,
            )
            for part in admitted.parts
        ),
    )


def _preparation(declaration: Declaration, config: CacheConfig) -> Hashable:
    """Return what tells preparations apart, beside the rest of `ModuleKey`; None: there is none."""
    if not declaration.prepare or declaration.substitute is not None:
        return None
    try:
        calls = digest_of(declaration.prepare, config.total_fuel, config.instance_stack_size)
    except UnknownValueError:
        return object()  # nobody knows whether another one is the same
    try:
        hash(declaration.abi)
    except TypeError:
        return object()
    return calls, declaration.abi


@final
@frozen(eq=False, repr=False)
class Linkage:
    """What a module is linked with: what its imports get, and the parts around it."""

    names: tuple[tuple[str, str], ...]
    """Module and name of each import that is a host function, in order."""
    hosts: tuple[AnyHost, ...]
    """These host functions, and after them those that layers have of their own."""
    missing: bool
    """Whether some of them trap, as nobody provides them."""
    layers: tuple[Layer, ...] = ()
    """Layers of generated parts around the module, the first one next to the host."""
    reentrant: frozenset[int] = frozenset()
    """Positions of the host functions that a trampoline calls."""

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the host functions for messages, except of those that the engine answers."""
        from .._runtime.wit_host import WitHost

        made = [f"{module}.{name}" for module, name in self.names]
        given = {id(host): name for host, name in zip(self.hosts, made, strict=False)}
        for host in self.hosts[len(self.names) :]:
            if isinstance(host, TrampolineHost):
                made.append("")
            elif isinstance(host, WitHost):
                made.append(host.function.what)
            else:
                made.append(given.get(id(getattr(host, "function", None)), OWN))
        return tuple(made)

    @property
    def indexes(self) -> dict[tuple[str, str], int]:
        """{module and name of an import: position of its host function}."""
        return {name: index for index, name in enumerate(self.names)}

    @property
    def native(self) -> tuple[HostImport, ...]:
        """The host functions as the engine sees them, in order."""
        own = len(self.hosts) - len(self.names)
        names = (*self.names, *((OWN, str(number)) for number in range(own)))
        memories = {index: name for layer in self.layers for index, name in layer.memories.items()}
        return tuple(
            HostImport(
                *name,
                host.type,
                host.serve_alone,
                part=memories.get(index, USER),
                reentrant=index in self.reentrant,
                helper=host.helper if isinstance(host, TrampolineHost) else None,
            )
            for index, (name, host) in enumerate(zip(names, self.hosts, strict=True))
        )


# Module name of host functions that layers have of their own, for messages.
OWN = "trio_wasmcache"


def _behind(info: ModuleInfo, declaration: Declaration, instances: Layer) -> Linkage:
    """Return what the module in front of a component's core instances is linked with."""
    layers = [instances]
    if isinstance(declaration.abi, LayeredAbi):
        first = len(instances.hosts)
        layers.append(declaration.abi.layer(declaration.what, info, {}, first))
    return Linkage((), _component_hosts(declaration, instances.hosts), False, tuple(layers))


def _component_hosts(declaration: Declaration, needed: Sequence[Needed]) -> tuple[AnyHost, ...]:
    """Return the host functions that a component needs.

    Raises:
        LinkError: nobody provides one.
    """
    from .._core.wasm.component.exports import is_interface
    from .._core.wasm.component.lowering import BATCHES_TYPE, NEXT_TYPE
    from .._runtime.wasi2 import find_function
    from .._runtime.wit_host import WitAllocated, WitDrop, WitHost

    grants = declaration.grants
    made: list[AnyHost] = []
    missing: dict[str, dict[str, None]] = {}
    for one in needed:
        function = one.function
        if function is None:
            allocated = WitAllocated(BATCHES_TYPE if one.batches else NEXT_TYPE)
            made.append(allocated if one.resource is None else WitDrop(one.resource.name))
            continue
        given = next(
            (
                given
                for (interface, name), given in declaration.functions.items()
                if name == function.name and is_interface(function.interface, interface)
            ),
            None,
        )
        if given is not None and one.handles:
            raise LinkError(
                f"{declaration.key}: the component imports {one.what}, which is "
                f"{shown_text(one.signature)}, and resources can't be given by imports="
            )
        own = None if given else find_function(function.interface, function.name, grants)
        if own is not None and own.type not in ("", one.signature):
            raise LinkError(
                f"{declaration.key}: the component imports {one.what} as "
                f"{shown_text(one.signature)}, but WASI 0.2 has {own.type}"
            )
        if given is not None or own is not None:
            made.append(WitHost(function, given, None if own is None else own.run))
        elif declaration.trap_missing:
            made.append(
                MissingFunction(
                    function.interface,
                    function.name,
                    function.host_type,
                    shown_text(one.signature),
                )
            )
        else:
            missing.setdefault(function.interface, {})[function.name] = None
    if missing:
        names = [f"{interface}#{name}" for interface, names in missing.items() for name in names]
        sample = next(iter(missing))
        remedy = f'imports={{"{sample}": {{"{next(iter(missing[sample]))}": function}}}}'
        raise LinkError(
            f"{declaration.key}: the component imports what nobody provides: "
            f"{shown_text(listed(names, MAX_LISTED))}: give {shown_text(remedy)}, or build it "
            'without; missing="trap" lets calls of them trap'
        )
    return tuple(made)


def _find_imports(info: ModuleInfo, declaration: Declaration) -> Linkage:
    """Return what the imports of a module are linked with; `LinkError` if something is not there.

    The layers of generated parts are asked for here, once the imports are known.
    """
    component = declaration.component
    if component is not None and component.layer is not None:
        return _behind(info, declaration, component.layer)
    hosts = declaration.hosts_for(info)
    layered = declaration.abi if isinstance(declaration.abi, LayeredAbi) else None
    supplied: dict[tuple[str, str], FuncType] = {}
    if layered is not None:
        supplied.update(layered.supplies)
    wanted = check_imports(
        info,
        declaration.what,
        {**declaration.given_to(info), **supplied},
        misfit=lambda name, wanted: (
            hosts[name].misfit(wanted)
            if name not in supplied
            else f"it is {signature(supplied[name])}"
        ),
        trap_missing=declaration.trap_missing,
    )
    missing: dict[tuple[str, str], FuncType] = {}
    if declaration.trap_missing:
        missing = missing_imports(info, {**hosts, **supplied})
        hosts |= missing_functions(missing)
    names = tuple(name for name in wanted if name in hosts)
    found = Linkage(names, tuple(hosts[name] for name in names), bool(missing))
    reentrant = {
        name: (index, host.type)
        for index, (name, host) in enumerate(zip(names, found.hosts, strict=True))
        if is_reentrant(host) and name not in supplied
    }
    if reentrant:
        from .._core.wasm.trampoline import trampoline_layer

        layer = trampoline_layer(info, reentrant, len(found.hosts))
        found = evolve(
            found,
            hosts=(*found.hosts, *map(TrampolineHost, layer.hosts)),
            layers=(layer,),
            reentrant=frozenset(index for index, _ in reentrant.values()),
        )
    if layered is None:
        return found
    from .._core.wasm.graph import Layer
    from .._runtime.extism import kernel_hosts

    given = {
        name: (None if index in found.reentrant else index, hosts[name])
        for name, index in found.indexes.items()
    }
    layer = layered.layer(declaration.what, info, given, len(found.hosts))
    if layer == Layer():
        return found
    own = kernel_hosts(layer.hosts, declaration.grants)
    return evolve(found, hosts=(*found.hosts, *own), layers=(*found.layers, layer))
