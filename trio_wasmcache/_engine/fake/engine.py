"""Implement `Engine` without wasm: `FakeEngine` compiles and loads modules that tests describe."""

from __future__ import annotations

import errno
import inspect
import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import trio
from attrs import evolve

from ..._core.config import KiB, SystemLimits
from ..._core.errors import InvalidModuleError, LoadError
from ..._core.keys import normalise_types
from ..._core.metrics.stats import ResidentBytes
from ..._core.text import listed, shown
from ..._core.tiers import OPTIMIZING, Tier
from ..._core.wasm.admission import Edits
from ..._core.wasm.custom import keep_debug_sections
from ..._core.wasm.driver import Shape
from ..._core.wasm.editor import encode_module
from ..._core.wasm.graph import Graph
from ..._core.wasm.growth import UNMOVED
from ..._core.wasm.memory_layout import MemoryShape
from ..._core.wasm.reader import (
    VALUE_TYPES,
    ExcessiveModuleError,
    Export,
    FuncType,
    Import,
    Limits,
    MalformedModuleError,
    ModuleInfo,
    read_module,
)
from ..._public import public_in_testing
from ..base import Artifact, HostImport, PartCode, StartCall, Substitute
from ..compile_slots import AnyTurn, CompileSlots, Turn
from .behaviour import Behaviour
from .driver import FakeDriverCode
from .instance import FakeInstance, FakeModule, prepared_sizes
from .steps import Steps

FAKE_SECTION = "trio_wasmcache.fake"
MARKER = bytes([len(FAKE_SECTION)]) + FAKE_SECTION.encode()
RUN = "run"
MAX_PAGES = 65536
NO_EXPORTS: Mapping[str, Callable[..., Any]] = {}
# Bytes of the code of a generated part of a graph, which this engine does not run.
PART_SIZE = 4 * KiB
_numbers = itertools.count(1)  # of the engines of this process, so that fakes differ


@public_in_testing
@final
class FakeEngine(Steps):
    """An engine in which nothing is native and everything can be chosen.

    .. code-block::

        engine = FakeEngine()
        double = engine.module(lambda x: 2 * x)
        async with open_fake_cache(engine=engine) as cache:
            await cache.register("double", double, args=("i64",), returns="i64", export="run")

    `function` makes fakes of Python values, `module` fakes of wasm's numbers; `replace` puts either
    in the place of a file of the application.

    Compiling, loading and starting an instance are native steps with a checkpoint each; so is each
    call, with a checkpoint between its slices. `steps` names those taken so far.

    .. code-block::

        engine = FakeEngine(fail_at=2)  # 1: compile, 2: load
        async with open_fake_cache(engine=engine) as cache:
            f = await cache.register("f", engine.function(str.upper), args=("str",), ...)
            with pytest.raises(LoadError):
                await f.call("hello")
            assert await f.call("hello") == "HELLO"

    Args:
        fail_at: the number of the native step (from 1) that fails; None: none does.

    Raises:
        TypeError, ValueError: `fail_at` is not a number from 1.
    """

    def __init__(self, *, fail_at: int | None = None) -> None:
        if fail_at is not None:
            _check_whole("fail_at", fail_at, 1)
        super().__init__(fail_at=fail_at)
        self.system: SystemLimits = SystemLimits()
        """Limits of the system that apply to the cache; by default, there are none."""
        self.modules: dict[str, Behaviour] = {}
        """{name: behaviour} of the modules that `module` and `function` made."""
        self._fakes: dict[object, bytes] = {}  # {name, bytes or (absolute path,): fake}
        self._number = next(_numbers)
        self.closed: bool = False
        """Whether the cache has closed it."""
        self.compile_slots: CompileSlots = CompileSlots(1)
        """Slots in which it compiles: one."""

    def module(
        self,
        run: Callable[..., Any] = lambda *values: values[0] if values else 0,
        *,
        params: Sequence[str] = ("i64",),
        results: Sequence[str] = ("i64",),
        export: str = "run",
        memory_pages: int = 1,
        max_pages: int | None = None,
        code_size: int = 16 * KiB,
        fuel: float = 100,
        start_fuel: float = 0,
        seconds: float = 0,
        start_seconds: float = 0,
        grow_pages: int = 0,
        host_imports: Sequence[tuple[str, str]] = (),
        memory_import: tuple[str, str] | None = None,
        exports: Mapping[str, Callable[..., Any]] = NO_EXPORTS,
        resettable: bool = True,
        address_space: int = 0,
        mappings: int = 0,
    ) -> bytes:
        """Make bytes to register: a well-formed module whose export behaves as said here.

        A call that takes `seconds` does so between two slices, by Trio's clock, as if its guest
        slept: no thread and no CPU time are used, and calls of other leases go on meanwhile. With
        `trio.testing.MockClock` and an `autojump_threshold` no time passes. In a batch each row
        takes that long.

        .. code-block::

            async def test_a_slow_call_is_given_up(autojump_clock):
                engine = FakeEngine()
                slow = engine.module(seconds=30)
                async with open_fake_cache(engine=engine) as cache:
                    f = await cache.register(
                        "f", slow, args=("i64",), returns="i64", export="run"
                    )
                    with pytest.raises(trio.TooSlowError), trio.fail_after(10):
                        await f.call(1)

        Args:
            run: function that is called with the values of a call (wasm's numbers) and returns its
                result: a number, a tuple of numbers for several `results`, or anything for none. A
                call raises what it raises, and `TypeError` or `OverflowError` if what it returned
                is not of the types in `results`. The first argument is returned by default.
            params: wasm types of the export's parameters, and of those of its host imports.
            results: wasm types of its results, and of those of its host imports.
            export: name of the export.
            memory_pages: pages of 64 KiB of its memory, which is exported as ``"memory"`` and takes
                no memory of the process until something is written to it.
            max_pages: largest number of pages of its memory; None: the module has no maximum.
            code_size: bytes of its code, once loaded.
            fuel: units of fuel that a call burns; `math.inf`: it never ends by itself.
            start_fuel: units of fuel that starting an instance burns.
            seconds: seconds that a call takes on Trio's clock; `math.inf`: it never ends by itself.
            start_seconds: seconds that starting an instance takes.
            grow_pages: pages that each call adds to the memory.
            host_imports: (module, name) of each host function that it imports; a call calls each,
                in this order, with its own arguments, and then `run` with their results.
            memory_import: (module, name) of its memory if it imports that, which `register` must be
                given as a `HostMemory`, and does not export it; None: it has a memory of its own.
            exports: {name: function} of further exports, for reentrant host functions to invoke.
                They take wasm's numbers and return one, a tuple, or None, or raise what the invoke
                is to raise; each burns as much fuel as a call, and calls no host functions.
            resettable: whether its instances can be reset, as ``isolation="reset"`` asks.
            address_space: bytes of addresses that an instance reserves, and each of its drivers.
            mappings: number of memory mappings of an instance, and of each of its drivers.

        Raises:
            ValueError: a number is out of its range, or a type is none of wasm's.
            TypeError: `run` is not a function, or an async one; or another parameter has a bad
                type.
        """
        signature = FuncType(_wasm_types("params", params), _wasm_types("results", results))
        _check_pages(memory_pages, max_pages)
        _check_host_imports("host_imports", host_imports)
        if memory_import is not None:
            _check_host_imports("memory_import", [memory_import])
        if not isinstance(exports, Mapping):
            raise TypeError(f"exports must be {{name: function}}, got {shown(exports)}")
        for what, number in (
            ("code_size", code_size),
            ("grow_pages", grow_pages),
            ("address_space", address_space),
            ("mappings", mappings),
        ):
            _check_whole(what, number)
        behaviour = Behaviour(
            run=_plain_function(run),
            export=export,
            results=signature.results,
            code_size=code_size,
            fuel=_amount("fuel", fuel),
            start_fuel=_amount("start_fuel", start_fuel),
            seconds=_amount("seconds", seconds),
            start_seconds=_amount("start_seconds", start_seconds),
            grow_pages=grow_pages,
            host_calls=len(host_imports),
            exports={name: _plain_function(made) for name, made in exports.items()},
            resettable=resettable,
            address_space=address_space,
            mappings=mappings,
        )
        memory = Limits(memory_pages, max_pages)
        return self._encode(behaviour, signature, memory, host_imports, memory_import)

    def function(
        self,
        run: Callable[..., Any],
        *,
        args: Sequence[str] | None = None,
        returns: str | Sequence[str] | None = None,
        memory_pages: int = 1,
        code_size: int = 16 * KiB,
        fuel: float = 100,
        seconds: float = 0,
    ) -> bytes:
        """Make bytes to register: a function of Python values, whatever its types and its ABI are.

        .. code-block::

            engine = FakeEngine()
            fake = engine.function(lambda text: text.upper(), args=("str",), returns="str")
            async with open_fake_cache(engine=engine) as cache:
                shout = await cache.register(
                    "shout", fake, args=("str",), returns="str", abi="buffer"
                )
                assert await shout.call("hello") == "HELLO"

        Values and results are checked as the ABI given to `register` checks them, nulls included,
        but not converted. An ABI of your own is not used at all. Batches go row by row. The export
        may have any name.

        Args:
            run: function that is called with the values of a call, and returns its result: a tuple
                for several types in `returns`. A call raises what it raises, and `TypeError`,
                `ValueError` or `OverflowError` if what it returned is not of the declared type.
            args: types of the arguments, as in `register`, which must be given the same; None: the
                function takes any.
            returns: type of the result, as in `register`; used only if `args` are given. None:
                the function returns nothing.
            memory_pages: see `module`.
            code_size: see `module`.
            fuel: see `module`.
            seconds: see `module`.

        Raises:
            ValueError: a number is out of its range.
            TypeError: `run` is not a function, or an async one; or another parameter has a bad
                type.
        """
        _check_pages(memory_pages, None)
        _check_whole("code_size", code_size)
        if args is not None:
            normalise_types(args)
        if returns is not None and not isinstance(returns, str):
            normalise_types(returns, "returns")
        behaviour = Behaviour(
            run=_plain_function(run),
            export=RUN,
            results=(),
            code_size=code_size,
            fuel=_amount("fuel", fuel),
            start_fuel=0,
            seconds=_amount("seconds", seconds),
            start_seconds=0,
            grow_pages=0,
            host_calls=0,
            resettable=True,
            address_space=0,
            mappings=0,
            takes_values=True,
            args=args,
            returns=returns,
        )
        return self._encode(behaviour, FuncType((), ()), Limits(memory_pages, None), ())

    def replace(self, source: str | bytes | os.PathLike[str], fake: bytes) -> None:
        """Register a fake wherever the application registers `source`, whose file is not read.

        .. code-block::

            engine.replace(Path("udfs/shout.wasm"), engine.function(lambda text: text.upper()))

        Args:
            source: path of the application's file, bytes that it registers, or as a `str` the name
                of its function. A fake for the name is used before one for the file or the bytes.
            fake: bytes made by `module` or `function` of this engine. The name of the export that
                the application gives is not used.

        Raises:
            InvalidModuleError: `fake` was not made by this engine.
            TypeError: `source` is none of these, or `fake` is not bytes.
        """
        if not isinstance(fake, bytes):
            raise TypeError(
                "fake must be bytes made by FakeEngine.function or FakeEngine.module, got "
                f"{shown(fake)}"
            )
        self._behaviour(fake)
        self._fakes[_key(source)] = fake

    def _check_file(self, name: str, path: os.PathLike[str]) -> None:
        """Raise `FileNotFoundError` for a file that is not there, which says what has a fake."""
        file = Path(os.fsdecode(path))
        if "\0" in str(file) or file.exists():
            return
        error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        fakes = [
            shown(Path(*one) if isinstance(one, tuple) else one)
            for one in self._fakes
            if not isinstance(one, bytes)
        ]
        error.add_note(
            f"the fake engine has nothing in the place of {shown(str(file))} or of the function "
            f"{shown(name)}; FakeEngine.replace was called for: {listed(fakes) or 'nothing'}"
        )
        raise error

    def substitute(self, name: str, wasm: object) -> Substitute | None:
        """Return the fake in the place of a source, for the cache; see `Engine.substitute`."""
        if isinstance(wasm, (bytearray, memoryview)):
            wasm = bytes(wasm)
        given = wasm if isinstance(wasm, bytes) else None
        fake = self._fakes.get(name)
        if fake is None and isinstance(wasm, (bytes, os.PathLike)):
            fake = self._fakes.get(_key(wasm))
        if fake is None and given is not None:
            found = self._behaviour(given) if MARKER in given else None
            fake = given if found is not None and found.takes_values else None
        if fake is None:
            if isinstance(wasm, os.PathLike):
                self._check_file(name, wasm)
            return None
        behaviour = self._behaviour(fake)
        return Substitute(
            fake, behaviour.export, behaviour.takes_values, behaviour.args, behaviour.returns
        )

    def _encode(
        self,
        behaviour: Behaviour,
        signature: FuncType,
        memory: Limits,
        host_imports: Sequence[tuple[str, str]],
        memory_import: tuple[str, str] | None = None,
    ) -> bytes:
        name = f"fake module {len(self.modules) + 1} of engine {self._number}"
        self.modules[name] = behaviour
        imports = [Import(module, item, "func", signature) for module, item in host_imports]
        exports = [Export(behaviour.export, "func", len(host_imports))]
        if memory_import is None:
            exports.append(Export("memory", "memory", 0))
        else:
            imports.append(Import(*memory_import, "memory", memory))
        return encode_module(
            types=[signature],
            imports=imports,
            functions=[0],
            memories=[memory] if memory_import is None else [],
            exports=exports,
            code=[b"\x00\x00\x0b"],  # no locals; unreachable; end
            custom=[(FAKE_SECTION, name.encode())],
        )

    async def to_wasm(self, text: str) -> bytes:
        """Refuse WebAssembly text, for the cache; see `Engine.to_wasm`.

        **Checkpoint:** never, as it always raises.
        **Cancellation:** nothing is under way.
        """
        raise InvalidModuleError(
            "the fake engine reads no text: register what FakeEngine.function or "
            "FakeEngine.module made, or put it in the place of the text by "
            "FakeEngine.replace(name, fake)"
        )

    def turn(self, group: Hashable) -> Turn:
        """Return a place in the queue of compiles, for the cache; see `Engine.turn`."""
        return self.compile_slots.turn(group)

    async def compile(
        self,
        wasm: bytes,
        admit: Callable[[ModuleInfo], Edits | Graph],
        turn: AnyTurn | None = None,
        tier: Tier | None = None,
    ) -> Artifact:
        """Compile bytes that `module` made, for the cache; see `Engine.compile`.

        **Checkpoint:** always.
        **Cancellation:** nothing was compiled.
        """
        await trio.lowlevel.checkpoint()
        if self.step("compile"):
            raise InvalidModuleError("the fake engine was told to fail")
        self.check_memory()
        try:
            info = read_module(wasm)
        except MalformedModuleError as error:
            raise InvalidModuleError(str(error)) from None
        admitted, behaviour = _prepared(admit(info)), self._behaviour(wasm)
        if isinstance(admitted, Edits):
            info = prepared_sizes(info, admitted)
        artifact = Artifact(
            wasm,
            behaviour.code_size,
            admitted.user.info if isinstance(admitted, Graph) else info,
            admitted.user.edits if isinstance(admitted, Graph) else admitted,
            address_space=behaviour.address_space,
            mappings=behaviour.mappings,
            debug=keep_debug_sections(wasm),
            tier=tier or OPTIMIZING,
        )
        if not isinstance(admitted, Graph):
            return artifact
        behaviours = [self._find(part.wasm) for part in admitted.parts]
        return evolve(
            artifact,
            code_size=sum(PART_SIZE if one is None else one.code_size for one in behaviours),
            address_space=sum(one.address_space for one in behaviours if one is not None),
            mappings=sum(one.mappings for one in behaviours if one is not None),
            graph=admitted.bare(),
            codes=tuple(PartCode(part.wasm, UNMOVED) for part in admitted.parts),
        )

    async def prove(
        self,
        artifact: Artifact,
        hosts: Sequence[HostImport],
        initialize: Sequence[StartCall],
        turn: AnyTurn | None = None,
    ) -> Artifact:
        """Find out whether instances can be reset, for the cache; see `Engine.prove`.

        **Checkpoint:** always.
        **Cancellation:** nothing was found out.
        """
        await trio.lowlevel.checkpoint()
        resettable = self._behaviour(artifact.data).resettable
        return evolve(artifact, obstacle=None if resettable else "the fake module says so")

    async def find_state(self, key: str) -> bytes | None:
        """Find nothing, for the cache; see `Engine.find_state`.

        **Checkpoint:** always.
        **Cancellation:** nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        return None

    async def keep_state(self, key: str, data: bytes) -> None:
        """Keep nothing, for the cache; see `Engine.keep_state`.

        **Checkpoint:** always.
        **Cancellation:** nothing has changed.
        """
        await trio.lowlevel.checkpoint()

    @property
    def code_sizes(self) -> dict[Tier, int]:
        """Bytes of code of loaded modules, for the cache; see `Engine.code_sizes`."""
        return {OPTIMIZING: self.code_size}

    def load_nowait(self, artifact: Artifact, hosts: Sequence[HostImport]) -> FakeModule | None:
        """Return None, as loading is a checkpoint here; see `Engine.load_nowait`."""
        return None

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> FakeModule:
        """Load a compiled module, for the cache; see `Engine.load`.

        **Checkpoint:** always.
        **Cancellation:** nothing was loaded.
        """
        await trio.lowlevel.checkpoint()
        if self.step("load"):
            raise LoadError("the fake engine was told to fail")
        self.check_memory()
        self.count_module(1, artifact.code_size)
        graph = artifact.graph
        parts = () if graph is None else tuple(part.name for part in graph.parts)
        behaviours = [self._find(code.data) for code in artifact.codes]
        return FakeModule(
            self,
            artifact,
            self._behaviour(artifact.data),
            hosts,
            {
                name: behaviour
                for name, behaviour in zip(parts, behaviours, strict=True)
                if behaviour is not None
            },
        )

    async def count_resident(
        self,
        *,
        idle: Sequence[FakeInstance],
        running: Sequence[FakeInstance],
        modules: Sequence[FakeModule],
    ) -> ResidentBytes:
        """Count all memory as resident, for the cache; see `Engine.count_resident`.

        **Checkpoint:** always.
        **Cancellation:** nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        return ResidentBytes(
            idle=sum(instance.resident_size for instance in idle),
            running=sum(instance.resident_size for instance in running),
            code=sum(module.artifact.code_size for module in modules),
            stacks=0,
        )

    async def driver(self, shape: Shape | MemoryShape, tier: Tier) -> FakeDriverCode | None:
        """Compile the driver of a batch, for the cache; see `Engine.driver`.

        **Checkpoint:** always.
        **Cancellation:** nothing was compiled.
        """
        await trio.lowlevel.checkpoint()
        if isinstance(shape, MemoryShape):
            return None
        if self.step("driver"):
            raise LoadError("the fake engine was told to fail")
        return FakeDriverCode(shape)

    def close(self) -> None:
        """Close the engine, for the cache; see `Engine.close`."""
        self.closed = True

    def _behaviour(self, wasm: bytes) -> Behaviour:
        found = self._find(wasm)
        if found is None:
            raise InvalidModuleError(
                "not made by FakeEngine.module or FakeEngine.function of this engine; "
                "FakeEngine.replace registers a fake in place of a file"
            )
        return found

    def _find(self, wasm: bytes) -> Behaviour | None:
        try:
            sections = read_module(wasm).sections
        except (MalformedModuleError, ExcessiveModuleError):
            return None
        for section in sections:
            payload = wasm[section.start : section.end]
            if section.id == 0 and payload.startswith(MARKER):
                name = payload[len(MARKER) :].decode(errors="replace")
                if name in self.modules:
                    return self.modules[name]
        return None


def _prepared(admitted: Edits | Graph) -> Edits | Graph:
    """Return a graph in which prepared parts declare the memories with which they begin."""
    if isinstance(admitted, Edits):
        return admitted
    parts = (evolve(one, info=prepared_sizes(one.info, one.edits)) for one in admitted.parts)
    return evolve(admitted, parts=tuple(parts))


def _key(source: object) -> str | bytes | tuple[str]:
    """Return the key of a source: a name, bytes, or (absolute path,)."""
    if isinstance(source, (str, bytes)):
        return source
    if isinstance(source, os.PathLike):
        return (str(Path(os.fsdecode(source)).resolve()),)
    raise TypeError(f"source must be a path, bytes or the name of a function, got {source!r:.200}")


def _plain_function(run: Callable[..., Any]) -> Callable[..., Any]:
    if not callable(run):
        raise TypeError(f"a fake takes a function, got {shown(run)}")
    if inspect.iscoroutinefunction(run):
        raise TypeError(
            f"a fake takes a plain function, and {shown(run)} is async; to take time, give seconds="
        )
    return run


def _amount(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, got {shown(value)}")
    if not value >= 0:  # NaN, too
        raise ValueError(f"{what} must be 0 or more, got {shown(value)}")
    return value


def _check_whole(what: str, value: int, minimum: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, got {shown(value)}")
    if value < minimum:
        raise ValueError(f"{what} must be at least {minimum}, got {shown(value)}")


def _check_pages(memory_pages: int, max_pages: int | None) -> None:
    _check_whole("memory_pages", memory_pages)
    if max_pages is not None:
        _check_whole("max_pages", max_pages)
    most = MAX_PAGES if max_pages is None else min(max_pages, MAX_PAGES)
    if memory_pages > most:
        raise ValueError(f"memory_pages must be at most {most}, got {shown(memory_pages)}")


def _wasm_types(what: str, names: Sequence[str]) -> tuple[str, ...]:
    types = normalise_types(names, what)
    for name in types:
        if name not in VALUE_TYPES.values():
            raise ValueError(
                f'{what} must be wasm types, such as "i64", got {shown(name)}: for values of '
                "Python use FakeEngine.function"
            )
    return types


def _check_host_imports(what: str, names: Sequence[tuple[str, str]]) -> None:
    for pair in names:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, str) for n in pair)
        ):
            raise TypeError(f'{what} must be pairs such as ("app", "price"), got {shown(pair)}')
