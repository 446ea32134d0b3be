"""The cache as users have it: registers functions, gives leases, opens groups, changes limits."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, Unpack, final, overload

import trio
from attrs import evolve, frozen

# Types that are imported only when they are first used: by this name, `get_type_hints` finds them.
import trio_wasmcache

from .._abi import names
from .._abi.base import Binding
from .._abi.names import (
    AnyAbi,
    BoolName,
    BytesName,
    CqlBoolName,
    CqlBytesName,
    CqlFloatName,
    CqlIntName,
    CqlLongName,
    CqlStrName,
    FloatName,
    IntName,
    StrName,
)
from .._core.config import CacheConfig, GroupLimits, check_fields
from .._core.errors import InvalidModuleError
from .._core.keys import INFERRED, FunctionKey, Inferred, check_name
from .._core.policy.records import FunctionRecord, Need
from .._core.text import listed, shown
from .._core.wasm.admission import least_size
from .._core.wasm.formats import foreign
from .._core.wasm.isolation import RESET, REUSE, Isolation, cache_verdict, verdict
from .._core.wasm.reader import ForeignFormatError, FuncType
from .._core.wasm.types import COMMAND
from .._ki import ki_safe_contextmanager
from .._log import Origin
from .._owner import refuse_copy
from .._pool.pool import COMPILE_SHARE
from .._pool.registration import AT_ONCE, Declaration, Missing, Source, declare, read_source
from .._public import only_from, public
from .._runtime.bound import Definition
from .._runtime.module import CachedModule
from .._runtime.prepare import Prepare
from .._runtime.wasi_config import Wasi
from .group import SchedulingGroup, groups_around
from .lease import Function, Lease, function_of, watched
from .options import (
    ComponentOptions,
    Imports,
    Limits,
    RegisterOptions,
    Wasm,
    WitImports,
)
from .parts import Parts
from .watching import Facts, Watcher

# Fields that `resize` can't change. `log_uses`, as a log that began without uses can't be replayed.
FIXED = frozenset(
    "stack_size compiler compile_memory compile_seconds main_capacity main_shares cache_dir "
    "log_uses keep_dumps log_values redact".split()
)


@final
@frozen(eq=False, repr=False)
class Compiled:
    """The compiled module of a function."""

    module: CachedModule
    binding: Binding
    seconds: float
    """What compiling took; 0.0 if the module was there."""
    group: str
    """Name of the group in whose turn it was."""
    least_size: int
    """Bytes that an instance starts with; once for all functions that share the module."""


@public
@final
@only_from("is made by open_cache: async with open_cache(...) as cache")
class InstanceCache:
    """Registered functions, and their instances, which are kept warm between calls.

    .. code-block::

        async with trio_wasmcache.open_cache() as cache:
            await cache.register("fib", wasm, args=("i64",), returns="i64")
            async with cache.acquire("fib", ("i64",)) as fib:
                assert await fib.call(10) == 55

    Use `open_cache` to make one. Its methods must be called in the Trio run that opened it. In
    another thread or run, and in a signal handler or finalizer that interrupts a step of the cache,
    they raise `RuntimeError` and change nothing. Use `trio.from_thread` in other threads, and
    `trio.lowlevel.TrioToken.run_sync_soon` in handlers. `repr()`, `config` and `acquire` work
    anywhere, but a lease can be entered only in that run. Once the cache is closed, methods that
    only read work anywhere, too.
    """

    def __init__(self, parts: Parts) -> None:
        self._pool = parts.pool
        self._groups = parts.groups
        self._compiler = parts.compiler
        self._promoter = parts.promoter
        self._profiler = parts.profiler
        self._statistics = parts.statistics
        self._snapshots = parts.snapshots
        self._watcher: Watcher | None = None
        _parts[self] = parts

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "open one in each process, and register its functions there")

    # -- functions

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: IntName | CqlIntName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[int]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: FloatName | CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[float]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BoolName | CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[bool]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[str]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[str | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[bytes]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[bytes | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: None = None,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlIntName | CqlLongName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[int | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[float | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[bool | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlStrName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[str | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBytesName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[bytes | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | Sequence[str] | None = None,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> Function[Any]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | None = ...,
        called_on_null: bool = False,
        **options: Unpack[ComponentOptions],
    ) -> Function[Any]: ...

    @trio.lowlevel.enable_ki_protection
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        args: Sequence[str] | Inferred = INFERRED,
        returns: str | Sequence[str] | Inferred | None = INFERRED,
        export: str | None = None,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        imports: Imports | WitImports | None = None,
        wasi: Wasi | None = None,
        prepare: Sequence[Prepare] = (),
        missing: Missing = "error",
        concurrency: int = 1,
        isolation: Isolation = "reuse",
        replace: bool = False,
    ) -> Function:
        """Compile a module, off the event loop, and register one of its exports as a function.

        .. code-block::

            add = await cache.register("add", Path("add.wasm"), args=("i64", "i64"), returns="i64")
            assert await add.call(1, 2) == 3

        Modules are compiled in turns of the caller's group (`current_group`, or ``"main"``): at
        most one module of a group at a time, the oldest first, and at most two in all groups
        together.

        A module that does not compile or link, lacks the export, or does not match the declared
        types is rejected, and leaves nothing behind.

        Args:
            name: name of the function. Together with `args` it identifies the function, so
                functions can be overloaded.
            wasm: bytes of a module or component, WebAssembly text as a `str`, or the path of a file
                with either: a `pathlib.Path`, as a `str` is never taken for a path.
            args: types of the arguments, such as ``("i64", "f64")``. The plain ABI has ``"i8"``,
                ``"i16"``, ``"i32"``, ``"i64"``, ``"u8"``, ``"u16"``, ``"u32"``, ``"u64"``,
                ``"f32"``, ``"f64"`` and ``"bool"``; others are those of `abi`. A component says
                them, so they may be left out.
            returns: type of the result; several types if a call returns a tuple; None: it returns
                nothing. Left out: None, and for a component what it says.
            export: name of the exported function; None: the same as `name`. In a component, such as
                ``"demo:shapes/funcs@0.1.0#area"``; the interface, its package and its version may
                be left out, and a compatible version is taken.
            abi: convention by which values cross, and whose types `args` and `returns` are; not for
                components. ``"plain"``: numbers and bools. ``"buffer"``: also bytes and str, by
                address and length (`BufferAbi`). ``"scylla"``: CQL's types, for UDFs built for
                ScyllaDB (`ScyllaAbi`; most types need the extra ``[scylla]``).
                ``"assemblyscript"``: also text, bytes and lists of numbers (`AssemblyScriptAbi`).
                Or an `Abi` object, such as ``BufferAbi(result="nul")``. None: ``"scylla"`` for a
                module that exports a global `_scylla_abi`; ``"assemblyscript"`` for one that
                exports AssemblyScript's runtime, if the types are its own, not those of
                ``"plain"``, or arguments have default values; ``"plain"`` for others.
            called_on_null: whether the function is called if an argument is None. If False, such a
                call returns None without running the guest. Arguments of a component's type
                ``option`` may always be None.
            imports: what the module imports, as ``{"module": {"name": HostFunction(...)}}``, with
                a `HostFunction`, `HostMemory`, `HostTable` or `HostGlobal` for each import; None:
                the module imports nothing but WASI preview 1, and AssemblyScript's `abort`,
                `trace`, `seed`, `Date.now`, `performance.now` and `console` under ``"env"``. These
                are always provided; a function given here under such a name takes its place. The
                module need not import everything that is given. For a component: plain functions,
                sync or async, by interface, such as ``{"demo:kv/store@0.1.0": {"get": get}}``;
                under ``""`` those of its world. They take and return values of WIT's types, and
                raise `WitError` to return the error of a `result` type.
            wasi: what WASI grants: arguments, environment, input, outputs, a seed and a clock.
                None: as `Wasi()`, nothing, and what a failing call wrote is in its error.
            prepare: calls to make once, before the module is compiled, such as
                ``(Prepare("init"),)``: every instance begins with what they did. They burn at most
                `total_fuel` each, are charged to the caller's group, and run in one of
                `max_threads` threads. Their instance is a running one of that group, though no
                lease: it counts against all limits, and waits for capacity. Functions with equal
                modules and calls are prepared once. `cache_dir` keeps the state of the instance
                after the calls, unless host functions took part, or `wasi` has functions, an
                environment or an input. The guest may not draw random bytes, read a clock (see
                `Prepare`) or call a `HostFunction` that is not pure.
            missing: what happens if nobody provides an imported function. ``"error"``: the module
                is rejected. ``"trap"``: calling the import raises a `TrapError` that names it.
                Memories, tables and globals must be given in any case.
            concurrency: number of instances that may run at the same time in one group; 1 to
                `max_instances`.
            isolation: how much a lease may find of the lease before it. ``"reuse"``: everything,
                as an instance serves one lease after the other. ``"fresh"``: nothing, as each
                lease gets a new instance. ``"reset"``: nothing, as the instance is restored to its
                initial state after each lease; if that is not possible, each lease gets a new
                instance (see `Function.isolation_verdict`). A *command*, which is an export named
                ``_start`` without arguments and results, runs once in an instance: ``"reuse"`` is
                the same as ``"fresh"``, and `proc_exit` with status 0 ends the call with None.
            replace: whether to replace the function of this name and these types, if there is one.
                The old one serves until the new one is compiled; current holders finish with the
                old one, waiters get the new one.

        Raises:
            InvalidModuleError: the module is not valid WebAssembly.
            ModuleTooLargeError: it has more than `max_wasm_size` bytes without its custom sections,
                or 8 times as many with them; it has too many parts; or it starts with more than
                `memory_limit` or `table_limit`.
            LinkError: it imports something that is neither given nor WASI preview 1, or whose type
                differs; the message says what to build instead, where it knows the toolchain.
            ExportError: it has no function of the name `export`, or is a program of Go, whose
                exports work only while the program runs.
            SignatureError: `abi` is unknown, or a type to it; or the export has other types.
            DuplicateFunctionError: the function is registered or being registered, and `replace`
                does not allow it.
            LoadError: a call of `prepare` failed, with the guest's error as its cause, or what it
                did can't be kept; the message says which call.
            CodeMemoryError: the system has no memory to compile it, though all idle instances
                were evicted; or an empty cache could not run the calls of `prepare`.
            DeadlockError: the instance for the calls of `prepare` would have to wait for a lease
                that is held by a task that waits for it, such as the caller.
            OSError: the file can't be read; `FileNotFoundError` if there is none.
            TypeError, ValueError: another parameter has a bad type or value.
            trio.ClosedResourceError: the cache is closed; with `prepare`, or the caller's group.

        **Checkpoint:** always.
        **Cancellation:** nothing is registered; the compiling thread is abandoned.
        """
        pool = self._pool
        pool.owner.check("register", waits=True)
        self._check_open(name)
        source: Source | None = None
        if isinstance(args, Inferred):
            name = check_name(name)
            source = await self._read(name, name, wasm)
            args, returns = source.types(name, export, returns)
            self._check_open(name)
        declaration = declare(
            name=name,
            args=args,
            returns=returns,
            export=export,
            abi=abi,
            called_on_null=called_on_null,
            imports=imports,
            wasi=wasi,
            prepare=prepare,
            concurrency=concurrency,
            isolation=isolation,
            missing=missing,
            replace=replace,
            max_instances=pool.config.max_instances,
        )
        key = declaration.key
        with pool.registry.reserve(key, replace):
            try:
                with self._shown(key) as told:
                    function, seconds = await self._register(declaration, wasm, source)
                    told.append(_facts(function, seconds))
                return function
            finally:
                pool.registry.release(key)
        raise trio.ClosedResourceError(f"the cache was closed while {key} was being registered")

    @trio.lowlevel.enable_ki_protection
    async def register_component(
        self,
        wasm: Wasm,
        interface: str | None = None,
        prefix: str = "",
        *,
        called_on_null: bool = False,
        imports: WitImports | None = None,
        wasi: Wasi | None = None,
        prepare: Sequence[Prepare] = (),
        missing: Missing = "error",
        concurrency: int = 1,
        isolation: Isolation = "reuse",
        replace: bool = False,
    ) -> tuple[Function, ...]:
        """Compile a component once, and register all functions that it exports.

        .. code-block::

            await cache.register_component(Path("shapes.wasm"), "demo:shapes/funcs", "shapes.")
            async with cache.acquire("shapes.area") as area:
                assert await area.call(Case("circle", 2.0)) > 12

        A function that can't be used, such as one with a resource in its signature, is left out
        without an error, unless none is left. The log names it, in `left_out` of the first
        function's ``wasmcache.registered``. `register` says why, for one function, and ``python -m
        trio_wasmcache inspect`` for all. If one of the rest can't be registered, none is. Other
        tasks run meanwhile, and may see the first functions before the last ones.

        Args:
            wasm: bytes of a component, its text as a `str`, or the path of a file with either.
            interface: name of the interface whose functions are registered, such as
                ``"demo:shapes/funcs@0.1.0"``. Its package, or its version, may be left out, and a
                compatible version is taken. None: all functions of the component.
            prefix: beginning of the functions' names in the cache; the rest is that in WIT.
            called_on_null: see `register`.
            imports: plain functions, see `register`; None: it imports nothing but WASI.
            wasi: what WASI grants; None: as `Wasi()`, nothing.
            prepare: see `register`.
            missing: see `register`.
            concurrency: see `register`; of each function.
            isolation: see `register`.
            replace: see `register`; it applies to each function.

        Returns:
            The functions, in the order in which the component exports them.

        Raises:
            InvalidModuleError: `wasm` is not valid WebAssembly.
            ExportError: the component has no such interface, or no function that can be used.
            DuplicateFunctionError: a function is registered or being registered, and `replace` does
                not allow it; or two interfaces have functions of the same name and types, which
                have to be registered one after the other, with another `prefix`.
            TypeError: `wasm` is no component, or a parameter has a bad type.
            trio.ClosedResourceError: the cache is closed.
            Exception: the errors of `register`.

        **Checkpoint:** always.
        **Cancellation:** nothing is registered; the compiling thread is abandoned.
        """
        pool = self._pool
        pool.owner.check("register_component", waits=True)
        self._check_open()
        for name, value in (("interface", interface), ("prefix", prefix)):
            if not isinstance(value, str) and not (value is None and name == "interface"):
                raise TypeError(f"register_component: {name} must be a str, got {shown(value)}")
        what = f"component {interface or prefix + '*'}"
        if not interface and not prefix:
            what = "register_component()"
        source = await self._read(what, what, wasm)
        self._check_open()
        component = source.component
        if component is None:
            if (found := foreign(source.wasm)) is not None:
                raise InvalidModuleError(f"{what}: {ForeignFormatError(found)}")
            raise TypeError(f"{what}: this is a core module: use register() for its functions")
        offered, *others = component.of_interface(what, interface)
        left_out = component.left_out(None if interface is None else offered.interface)
        first = declare(
            name=f"{prefix}{offered.name}",
            args=offered.args,
            returns=offered.returns,
            export=offered.export,
            abi=None,
            called_on_null=called_on_null,
            imports=imports,
            wasi=wasi,
            prepare=prepare,
            concurrency=concurrency,
            isolation=isolation,
            missing=missing,
            replace=replace,
            max_instances=pool.config.max_instances,
        ).of_component(component)
        declarations = [first]
        for offered in others:
            if len(declarations) % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            declarations.append(first.of_other(f"{prefix}{offered.name}", offered))
        self._check_open()
        keys = [one.key for one in declarations]
        with pool.registry.reserve_all(keys, replace):
            try:
                return await self._register_all(declarations, source.wasm, left_out)
            finally:
                for key in keys:
                    pool.registry.release(key)
        raise trio.ClosedResourceError(f"the cache was closed while {what} was being registered")

    async def _register_all(
        self, declarations: Sequence[Declaration], wasm: bytes, left_out: str | None
    ) -> tuple[Function, ...]:
        """Register functions of one component. A watcher is shown the first one, which compiles.

        Args:
            declarations: of the functions.
            wasm: core module of the component.
            left_out: functions of it that can't be used, for the log.
        """
        first, *others = declarations
        with self._shown(first.key) as told:
            compiled = await self._compile(first, wasm)
            # All are checked before any is installed, and the module is kept meanwhile.
            module = compiled.module
            self._compiler.keep(module)
            try:
                bindings = await self._compiler.bind_all(module, others)
                functions = [self._install(first, compiled, compiled.seconds, left_out)]
                for declaration, binding in zip(others, bindings, strict=True):
                    if len(functions) % AT_ONCE == 0:
                        # Either all are installed, or the cache is closed, which removes them.
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        self._check_open()
                    functions.append(self._install(declaration, evolve(compiled, binding=binding)))
            finally:
                self._compiler.drop(module)
            told.append(_facts(functions[0], compiled.seconds))
        return tuple(functions)

    @contextmanager
    def _shown(self, key: FunctionKey) -> Iterator[list[Facts]]:
        """Show the watcher a registration in the block, which appends the facts about it."""
        watcher = self._watcher
        told: list[Facts] = []
        if watcher is None or not watcher.wants():
            yield told
            return
        use = watcher.begin("register", key.name, key.args, self._groups.find().record.name)
        try:
            yield told
        except BaseException as error:
            use.end(error, Facts(key=key))
            raise
        use.end(None, told[0])

    async def _read(self, what: str, name: str, wasm: Wasm) -> Source:
        """Read what `register` was given."""
        pool = self._pool
        substitute = pool.engine.substitute(name, wasm)
        data = await read_source(
            pool.engine,
            what,
            wasm if substitute is None else substitute.wasm,
            pool.config.max_wasm_size,
            self._compiler.readers,
        )
        core, component = await self._compiler.take_apart(what, data, pool.config)
        return Source(core, component, substitute)

    async def _register(
        self, declaration: Declaration, wasm: Wasm, source: Source | None
    ) -> tuple[Function, float]:
        """Register a function; return it, and the seconds that compiling took."""
        key = declaration.key
        if source is None:
            source = await self._read(str(key), key.name, wasm)
        if source.substitute is not None:
            declaration = declaration.replaced(source.substitute)
        elif source.component is not None:
            declaration = declaration.of_component(source.component)
        else:
            declaration = declaration.of_core()
        self._check_open(key.name)
        compiled = await self._compile(declaration, source.wasm)
        return self._install(declaration, compiled, compiled.seconds), compiled.seconds

    async def _compile(self, declaration: Declaration, wasm: bytes) -> Compiled:
        """Compile the module of a function, or find it; `_install` must follow in this step."""
        pool, key = self._pool, declaration.key
        group = self._groups.find()
        get = self._compiler.get
        module, binding, seconds = await pool.relief.run_async(
            Need(key, group.record),
            COMPILE_SHARE,
            get,
            wasm,
            declaration,
            pool.config,
            group,
        )
        self._check_open(key.name)
        artifact = module.artifact
        least = least_size(artifact.edits.heap_size, artifact.info, *artifact.others)
        return Compiled(module, binding, seconds, group.record.name, least)

    def _define(
        self, declaration: Declaration, compiled: Compiled
    ) -> tuple[FunctionRecord, str | None]:
        """Return the record of a function that is to be registered now.

        Also what its author is advised, if instances of it can never be kept; else None.
        """
        module, binding = compiled.module, compiled.binding
        pool, artifact, key = self._pool, module.artifact, declaration.key
        record = FunctionRecord(
            key,
            pool.registry.next_generation(key),
            module.record,
            declaration.concurrency,
            module.worst_size,
            artifact.address_space,
            artifact.mappings,
            declaration.isolation,
        )
        command = declaration.export == COMMAND and binding.signature == FuncType((), ())
        keeps_state = declaration.isolation == REUSE and not command
        resets = declaration.isolation == RESET and module.why_not is None
        kept, advice = cache_verdict(
            pool.config, compiled.least_size, seats=not keeps_state, restored=resets
        )
        offered = declaration.offered
        function = Function(
            name=key.name,
            args=key.args,
            returns=declaration.returns,
            generation=record.generation,
            module_digest=module.digest,
            code_size=module.record.code_size,
            worst_size=record.worst_size,
            isolation=declaration.isolation,
            isolation_verdict=verdict(declaration.isolation, module.why_not, command=command)
            + ("" if module.prepared is None else f"; {module.prepared}"),
            cache_verdict=kept,
            wit=None if offered is None else offered.wit,
            acquire=self.acquire,
        )
        definition = Definition(
            function,
            declaration.returns,
            module,
            binding,
            declaration.export,
            declaration.called_on_null,
            keeps_state,
            resets,
            declaration.setup if pool.runtime.recorder is not None else None,
            command,
            None if offered is None else offered.takes_none,
        )
        record.define(definition)
        if resets:
            record.begin_resets()
        return record, advice

    def _install(
        self,
        declaration: Declaration,
        compiled: Compiled,
        seconds: float = 0.0,
        left_out: str | None = None,
    ) -> Function:
        """Make a function known, and retire the one that it replaces, if there is one.

        Args:
            declaration: of the function.
            compiled: its module.
            seconds: time that compiling took for it.
            left_out: functions of the component that can't be used, for the log.
        """
        pool, module = self._pool, compiled.module
        record, advice = self._define(declaration, compiled)
        function = function_of(Definition.of(record))
        self._compiler.keep(module)
        self._promoter.add(record)
        old = pool.registry.put(record)
        now = trio.current_time()
        if seconds:
            pool.policy.note_compiled(record, seconds)
        origin = pool.journal.here()
        if (prepared := module.take_news()) is not None:
            pool.journal.prepared(record, compiled.group, prepared, now, origin)
        pool.journal.registered(
            record,
            now,
            origin,
            module_digest=module.digest,
            module_number=module.number,
            code_bytes=function.code_size,
            compiler=module.artifact.tier.value,
            artifact_bytes=module.size,
            compile_seconds=seconds,
            concurrency=record.concurrency,
            worst_size_bytes=record.worst_size,
            address_space_bytes=record.address_space,
            mappings=record.mappings,
            module_mappings=module.record.mappings,
            isolation=function.isolation,
            isolation_verdict=function.isolation_verdict,
            cache_verdict=function.cache_verdict,
            advice=advice,
            left_out=left_out,
        )
        if old is not None:
            self._retire(old, now, origin, record)
        return function

    @trio.lowlevel.enable_ki_protection
    def remove(self, name: str, args: Sequence[str] | None = None) -> None:
        """Remove a function, or all functions of a name.

        Its idle instances are evicted now. Current holders finish with theirs; waiting acquires
        raise `UnknownFunctionError`.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None: all functions of that name.

        Raises:
            UnknownFunctionError: no such function is registered.
            trio.ClosedResourceError: the cache is closed.
        """
        self._pool.owner.check("remove")
        self._check_open(name)
        origin = self._pool.journal.here()
        for record in self._pool.registry.take(name, args):
            now = trio.current_time()
            self._pool.journal.removed(record, now, origin)
            self._retire(record, now, origin)

    def _retire(
        self,
        record: FunctionRecord,
        now: float,
        origin: Origin,
        successor: FunctionRecord | None = None,
    ) -> None:
        self._compiler.drop(Definition.of(record).module)
        self._promoter.forget(record)
        step = self._pool.policy.retire(record, now, successor)
        self._pool.carry_out(step, now, lambda: origin, in_pieces=True)

    def functions(self) -> tuple[Function, ...]:
        """Return the registered functions, in order of registration."""
        self._pool.owner.check_reading("functions")
        return tuple(
            function_of(Definition.of(record)) for record in self._pool.registry.functions.values()
        )

    # -- leases

    def acquire(self, name: str, args: Sequence[str] | None = None) -> Lease:
        """Return a lease of an instance, for use in a block: ``async with cache.acquire(...)``.

        The instance is acquired when the block is entered; see `Lease.__aenter__` for the errors.
        It belongs to the scheduling group in which this method is called: the innermost group of
        this cache around the caller, or the group ``"main"``.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
        """
        groups = self._groups
        group = groups.find() if groups_around() else groups.main
        lease = groups.lease
        return lease(self._pool, group, name, args)

    @trio.lowlevel.enable_ki_protection
    async def warm(self, name: str, args: Sequence[str] | None = None, count: int = 1) -> None:
        """Load instances of a function ahead of use, until the caller's group has `count` of them.

        Running instances are counted. It stops early if the instances are too large to be kept.
        These loads count neither as hits nor as misses.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
            count: number of instances; 1 to the function's concurrency.

        Raises:
            ValueError: `count` is not from 1 to the function's concurrency.
            TypeError: `count` is not an int.
            Exception: the errors of `Lease.__aenter__`.

        **Checkpoint:** always.
        **Cancellation:** instances that were loaded before stay.
        """
        self._pool.owner.check("warm", waits=True)
        self._check_open(name)
        record = self._pool.registry.find(name, args)
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count must be an int, got {shown(count)}")
        if not 1 <= count <= record.concurrency:
            raise ValueError(
                f"{record.key}: count must be from 1 to its concurrency, "
                f"{record.concurrency}; got {count}"
            )
        group = self._groups.find()
        await trio.lowlevel.checkpoint()
        for _ in range(count):  # not more: where capacity is short, each load evicts another
            record = self._pool.registry.find(name, args)
            entry = record.entries.get(group.record)
            if entry is not None and entry.live >= min(count, record.concurrency):
                return
            async with self._groups.lease(self._pool, group, name, args, warm=True):
                pass  # it is given back at once, and stays if it can be kept
            entry = record.entries.get(group.record)
            if entry is None or not entry.idle:
                return  # loaded, but too large to be kept, and so would be any further one

    # -- groups

    @ki_safe_contextmanager
    async def scheduling_group(
        self,
        name: str,
        *,
        capacity: float,
        shares: int = 100,
        max_size: int | None = None,
        reserved_size: int = 0,
        cpu_limit: float | None = None,
    ) -> AsyncIterator[SchedulingGroup]:
        """Open a `SchedulingGroup`: a nursery whose tasks share a capacity and a part of the CPU.

        .. code-block::

            async with cache.scheduling_group("oltp", capacity=8, shares=200) as group:
                group.start_soon(worker)

        The block runs in the group, too. When the block and all tasks have ended, the group's
        instances are evicted.

        Args:
            name: name of the group, different from those of other open groups.
            capacity: number of tasks that may hold or wait for instances at the same time; an int
                from 1, or `math.inf`.
            shares: part of the CPU, relative to other groups; 1 to 1,000,000.
            max_size: bytes of the group's idle instances together, at most; from 0. None: only the
                `max_size` of the cache limits them.
            reserved_size: bytes of the group's idle instances that others' need does not evict for
                size; from 0. While they are not used, other groups borrow them. Evictions for code,
                stacks, count and addresses take reserved instances last. The idle timeout applies
                to them, too.
            cpu_limit: cores that the group's guests, and host functions for them, may use, on
                average over a second; 0.001 to 1024. A call that exceeds it waits, and keeps its
                token, instance and stack meanwhile. None: no limit.

        Raises:
            TypeError: `name` is not a str.
            ValueError: `name` is in use, empty or not printable; or a limit is out of range; or
                `reserved_size` exceeds `max_size`; or all groups together would have more reserved
                than the `max_size` of the cache.
            trio.ClosedResourceError: the cache is closed.

        **Checkpoint:** as of a `trio.Nursery`; leaving waits for threads that are in a call.
        **Cancellation:** as of a `trio.Nursery`; the group's instances are evicted all the same.
        """
        self._pool.owner.check("scheduling_group", waits=True)
        self._check_open()
        limits = GroupLimits(
            capacity=capacity,
            shares=shares,
            max_size=max_size,
            reserved_size=reserved_size,
            cpu_limit=cpu_limit,
        )
        async with self._groups.open(name, limits) as group:
            yield group

    # -- limits and numbers

    @trio.lowlevel.enable_ki_protection
    def resize(self, **limits: Unpack[Limits]) -> None:
        """Change fields of the configuration, and evict instances that no longer fit.

        ``cache.resize(max_size=64 * MiB, idle_timeout=1.0)``

        `memory_limit` and `table_limit` apply to functions registered from now on. These can't be
        changed: `stack_size`, `cache_dir`, `compiler`, `compile_memory`, `compile_seconds`,
        `log_uses`, `log_values`, `redact`, `keep_dumps`, `main_capacity` and `main_shares`.

        Args:
            **limits: fields of `CacheConfig`, in their units.

        Raises:
            TypeError: there is no such field, or a value has the wrong type; nothing has changed.
            ValueError: a value is out of range, or the field can't be changed, or groups have more
                reserved than `max_size` would be; nothing has changed.
            trio.ClosedResourceError: the cache is closed.
        """
        pool = self._pool
        pool.owner.check("resize")
        self._check_open()
        fixed = FIXED & limits.keys()
        if fixed:
            raise ValueError(f"{', '.join(sorted(fixed))} can't be changed while the cache is open")
        check_fields("resize", limits)
        self._groups.resize_cache(evolve(pool.config, **limits))
        self._snapshots.set_deadline()

    @property
    def label(self) -> str:
        """Label of the cache, as it was given to `open_cache`."""
        return self._pool.log.label

    @property
    def config(self) -> CacheConfig:
        """Configuration with the limits in force."""
        return self._pool.config

    @trio.lowlevel.enable_ki_protection
    def stats(self) -> trio_wasmcache.CacheStats:
        """Return counters, distributions and gauges of this moment. This changes nothing."""
        self._pool.owner.check_reading("stats")
        return self._statistics.count()

    @trio.lowlevel.enable_ki_protection
    def pop_stats(self) -> trio_wasmcache.CacheStats:
        """Return the same as `stats`, and reset all counters and distributions; gauges stay.

        Use it in one place of the program only, as the numbers that it returns are not returned
        again. The counters of ``wasmcache.closed`` in the log are not affected.
        """
        self._pool.owner.check("pop_stats")
        stats = self._statistics.count()
        self._statistics.restart()
        return stats

    @trio.lowlevel.enable_ki_protection
    async def resident_bytes(self) -> trio_wasmcache.ResidentBytes:
        """Ask the kernel how many bytes of instances, code and stacks are in physical memory.

        They are counted in a thread, in whole system pages.

        Raises:
            NotImplementedError: the system is not Linux, or hides ``/proc/self/pagemap``.

        **Checkpoint:** always.
        **Cancellation:** nothing changes.
        """
        self._pool.owner.check("resident_bytes", waits=True)
        return await self._statistics.count_resident()

    @trio.lowlevel.enable_ki_protection
    async def profile(
        self,
        seconds: float = 10,
        group: str | SchedulingGroup | None = None,
        function: str | Function | None = None,
    ) -> trio_wasmcache.Profile:
        """Find out where guests burn their fuel, while they serve.

        .. code-block::

            profile = await cache.profile(seconds=10, function="slow")
            profile.save("slow.json")  # for https://profiler.firefox.com

        First, the modules of the functions are compiled once more, with code that takes samples.
        Then, for a window of time, new instances are made of that code. It burns the same fuel, but
        takes up to twice as long in tight loops and for short calls. A recursion that only just
        fits the stack may overflow it a call earlier. Idle instances of these functions are evicted
        when the window begins, and when it ends; those that are held, as their leases end. So under
        ``isolation="reuse"``, what instances keep from lease to lease is lost then. Functions and
        groups that are not profiled are not touched. The code counts in `max_code_size`, and is
        dropped at the end.

        If the cache is closed meanwhile, this returns what was found until then.

        Args:
            seconds: length of the window, without the time for compiling; greater than 0, and
                `math.inf` for until the cache is closed.
            group: group, or its name, whose instances are profiled, and those of a group that is
                opened by that name meanwhile; None: those of all groups.
            function: function to profile, or its name, for all functions of that name; None: all
                that have been called there since they were registered, or if none has been, all.
                Functions that are registered or replaced meanwhile are not profiled.

        Raises:
            UnknownFunctionError: no such function is registered.
            trio.BusyResourceError: a profile is under way.
            LoadError: nothing can be profiled; the message says why.
            TypeError, ValueError: a parameter has a bad type or value.
            trio.ClosedResourceError: the cache is closed, or was before the window began.

        **Checkpoint:** always.
        **Cancellation:** a compile is abandoned; the window ends, and what was found is lost.
        """
        pool = self._pool
        pool.owner.check("profile", waits=True)
        self._check_open()
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds must be a number, got {shown(seconds)}")
        if not seconds > 0:
            raise ValueError(f"seconds must be greater than 0, got {seconds}")
        if isinstance(group, SchedulingGroup):
            group = group.name
        if group is not None and not isinstance(group, str):
            raise TypeError(f"group must be a group, its name, or None, got {shown(group)}")
        functions = list(pool.registry.functions.values())
        if isinstance(function, Function):
            functions = [pool.registry.find(function.name, function.args)]
        elif isinstance(function, str):
            functions = pool.registry.named(function)
        elif function is not None:
            raise TypeError(
                f"function must be a function, its name, or None, got {shown(function)}"
            )
        else:
            used = list(filter(pool.policy.instances.used_in(group), functions))
            if group is not None and not used and group not in self._groups.states:
                known = listed([shown(name) for name in self._groups.states])
                raise ValueError(
                    f"no function was called in a group {shown(group)}, and none is open by that "
                    f"name; those that are open: {known}"
                )
            # Tasks that the caller has just started have called nothing yet.
            functions = used or functions
        return await self._profiler.run(seconds, functions, group, self._groups.find())

    @trio.lowlevel.enable_ki_protection
    def entries(self) -> tuple[trio_wasmcache.EntryInfo, ...]:
        """Return an `EntryInfo` for each function and group with instances or waiters.

        This changes nothing.
        """
        self._pool.owner.check_reading("entries")
        return self._statistics.describe_entries()

    def __repr__(self) -> str:
        return f"<InstanceCache {self._statistics.in_words()}>"

    # -- inside

    def _check_open(self, function: object = None) -> None:
        if self._pool.closed:
            what = "" if function is None else f"{shown(function)} can't be used: "
            raise trio.ClosedResourceError(f"{what}the cache is closed")


def _facts(function: Function, seconds: float) -> Facts:
    """Return what a watcher is told of a registration."""
    facts = Facts(key=function.key, generation=function.generation, compile_seconds=seconds)
    facts["code_size"], facts["module_digest"] = function.code_size, function.module_digest
    return facts


def watch(cache: InstanceCache, watcher: Watcher) -> None:
    """Show a watcher the uses of a cache, of leases that are made from now on.

    Raises:
        RuntimeError: somebody watches it already.
    """
    if cache._watcher is not None:  # noqa: SLF001 - in its own file
        raise RuntimeError(f"{cache!r} is watched already")
    cache._watcher = watcher  # noqa: SLF001
    parts_of(cache).groups.lease = watched(watcher)


# {cache: its parts}: for `trio_wasmcache.testing`, which compares what several of them say.
_parts: weakref.WeakKeyDictionary[InstanceCache, Parts] = weakref.WeakKeyDictionary()


def parts_of(cache: InstanceCache) -> Parts:
    """Return the parts that make up a cache; raise `TypeError` for anything else."""
    if not isinstance(cache, InstanceCache):
        raise TypeError(f"not an InstanceCache: {shown(cache)}")
    return _parts[cache]
