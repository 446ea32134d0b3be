"""Compiled modules: the serialized artifact, and the executable code while it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Protocol, final

import trio
from attrs import evolve

from .._core.config import MiB
from .._core.keys import FunctionKey
from .._core.policy.records import Module
from .._core.wasm.admission import worst_size
from .._core.wasm.custom import DebugSections
from .._engine.base import Artifact, Engine, HostImport, LoadedModule, Samples, StartCall
from .host import AnyHost
from .prepare import Prepared

if TYPE_CHECKING:
    from .._core.wasm.dwarf import LineTables

INITIALIZE = "_initialize"
# Cost of making an instance besides the fuel of its start (units): about 40 microseconds; of each
# further part; and of each import that is linked anew.
LOAD_FUEL, PART_FUEL, LINK_FUEL = 40_000, 10_000, 1_000
# Bytes of compressed debug sections that are kept of all modules of a cache.
DEBUG_BOOK_LIMIT = 128 * MiB
# Bytes of modules as they were given, compressed, that are kept of all modules of a cache.
SOURCE_BOOK_LIMIT = 128 * MiB


class Recipe(Protocol):
    """What is needed to compile a module by another compiler."""

    @property
    def size(self) -> int:
        """Bytes that are kept for it."""


@final
class CachedModule:
    """A compiled module: its artifact, and its executable code while the ledger counts it."""

    __slots__ = (
        "__weakref__",
        "_loading",
        "_pins",
        "_told",
        "artifact",
        "debug_sections",
        "digest",
        "engine",
        "host_imports",
        "hosts",
        "initialize",
        "key",
        "line_tables",
        "load_fuel",
        "loaded",
        "number",
        "prepared",
        "recipe",
        "record",
        "samples_of",
        "source",
        "why_not",
        "worst_size",
    )

    def __init__(
        self,
        key: Hashable,
        digest: str,
        engine: Engine,
        artifact: Artifact,
        hosts: tuple[AnyHost, ...],
        host_imports: tuple[HostImport, ...],
        why_not: str | None = None,
        initialize: tuple[StartCall, ...] = (),
        number: int = 0,
        prepared: Prepared | None = None,
        recipe: Recipe | None = None,
        source: Recipe | None = None,
    ) -> None:
        self.key: Hashable = key
        """Key of the module: bytes, imports, limits, preparation; see `registration.ModuleKey`."""
        self.digest: str = digest
        """SHA-256 of the bytes given to `register`, in hexadecimal."""
        self.engine: Engine = engine
        self.artifact: Artifact = artifact
        self.hosts: tuple[AnyHost, ...] = hosts
        self.host_imports: tuple[HostImport, ...] = host_imports
        self.why_not = why_not
        """Reason why its instances can't be reset, if there is one and it is known."""
        self.initialize: tuple[StartCall, ...] = initialize
        """Exports that are called before anything else: of a WASI reactor, `_initialize`."""
        self.number: int = number
        """Number of the module in the cache's log."""
        self.prepared: Prepared | None = prepared
        """What its instances begin with, if it was prepared."""
        self._told = False
        """Whether the log knows how it was prepared."""
        self.load_fuel: int
        """Units that making an instance costs, beside the fuel of its start."""
        self.worst_size: int
        """Bytes that an instance may touch at most; one number for all functions of the module."""
        self.record: Module
        """Record of the module in the policy."""
        self.debug_sections: DebugSections | None
        """Debug sections of the module, for the lines of backtraces; None if it has none, and once
        `DebugBook` needs their memory for other modules."""
        self.line_tables: LineTables | None = None
        """Source lines that were found in them so far; None before the first search."""
        self.loaded: LoadedModule | None = None
        self.recipe = recipe
        """What the optimizing compiler needs to compile it, too; None: it has, or is not to."""
        self.source: Recipe | None = source
        """The same, for a variant of it that takes samples; None once `SourceBook` needs its
        memory."""
        self.samples_of: Callable[[str, FunctionKey], Samples] | None = None
        """Function that returns where samples of a new instance go, by the name of its group and
        its function, while it is profiled; None: it is not."""
        self._loading: trio.Event | None = None
        self._pins = 0
        self.debug_sections = self.artifact.debug
        if self.debug_sections is not None:
            self.artifact = evolve(self.artifact, debug=None)
        artifact = self.artifact
        self.worst_size = worst_size(*artifact.modules)
        self.load_fuel = LOAD_FUEL
        if artifact.graph is not None:
            self.load_fuel += PART_FUEL * len(artifact.others) + LINK_FUEL * artifact.graph.links
        self.record = Module(
            self.digest,
            artifact.code_size,
            artifact.module_mappings,
            code=self,
            number=self.number,
        )

    @property
    def size(self) -> int:
        """Bytes that are kept of it at rest: its artifact, its debug sections and line tables.

        Also the module itself, compressed, as long as it may be compiled once more.
        """
        recipe = self.recipe or self.source
        return self.artifact.size + self.debug_size + (0 if recipe is None else recipe.size)

    @staticmethod
    def of(module: Module) -> CachedModule:
        """Return the compiled module of a record of the policy."""
        assert isinstance(module.code, CachedModule)
        return module.code

    @property
    def debug_size(self) -> int:
        """Bytes of its debug sections, compressed, and of its line tables."""
        debug = self.debug_sections
        lines = self.line_tables
        return (0 if debug is None else debug.size) + (0 if lines is None else lines.size)

    def forget_debug_sections(self) -> None:
        """Free the debug sections, and the line tables."""
        self.debug_sections = self.line_tables = None

    def learn(self, why_not: str | None) -> None:
        """Note why its instances can't be reset, if that was not known yet."""
        self.why_not = self.why_not or why_not

    def take_news(self) -> Prepared | None:
        """Return how it was prepared, the first time; None if it was not."""
        told, self._told = self._told, True
        return None if told else self.prepared

    def get_nowait(self) -> LoadedModule | None:
        """Return the executable module, loaded now if that takes no thread; None: use `get`."""
        if self.loaded is None and self._loading is None:
            self.loaded = self.engine.load_nowait(self.artifact, self.host_imports)
        return self.loaded

    async def get(self) -> LoadedModule:
        """Return the executable module; the first caller loads it, others wait for the load.

        **Checkpoint:** maybe, if it is not loaded.
        **Cancellation:** if the task that loads is cancelled, the next one loads.
        """
        while self.loaded is None:
            if self._loading is not None:
                await self._loading.wait()
                continue
            self._loading = trio.Event()
            try:
                self.loaded = await self.engine.load(self.artifact, self.host_imports)
            finally:
                self._loading.set()
                self._loading = None
        return self.loaded

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep the code loaded in the block, for an instance that is in no book yet."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1
            if not self.record.users:
                self.unload()

    def forget_recipe(self) -> None:
        """Have it compiled by no other compiler."""
        self.recipe = None

    def unload(self) -> None:
        """Free the code, which no instance uses any more, unless it is `pinned`."""
        if self.loaded is not None and not self._pins:
            loaded, self.loaded = self.loaded, None
            loaded.close()


class _Book:
    """A book of something that a cache keeps of its modules; only it frees that.

    Where `limit` is exceeded, that of the modules that were added first is freed.
    """

    __slots__ = ("_sizes", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        """Bytes of all modules together, at most."""
        self.size: int = 0
        """Bytes of all modules together."""
        self._sizes: dict[CachedModule, int] = {}  # {module: bytes}, the first added first

    def _count(self, module: CachedModule, size: int) -> None:
        """Note the bytes of a module, and free others' if they do not fit."""
        self.size += size - self._sizes.get(module, 0)
        self._sizes[module] = size
        while self.size > self.limit:
            self.remove(next(iter(self._sizes)))

    def remove(self, module: CachedModule) -> None:
        """Free what is kept of a module."""
        self.size -= self._sizes.pop(module, 0)
        self._free(module)

    def _free(self, module: CachedModule) -> None:
        raise NotImplementedError


@final
class DebugBook(_Book):
    """The book of the debug sections that a cache keeps."""

    __slots__ = ()

    def __init__(self, limit: int = DEBUG_BOOK_LIMIT) -> None:
        super().__init__(limit)

    def add(self, module: CachedModule) -> None:
        """Count the debug sections of a module, and free others if they do not fit."""
        if module.debug_sections is not None and module not in self._sizes:
            self._count(module, module.debug_size)

    def recount(self, module: CachedModule) -> None:
        """Count the line tables of a module, too, and free others if they do not fit."""
        if module in self._sizes:  # else its functions were removed meanwhile
            self._count(module, module.debug_size)

    def _free(self, module: CachedModule) -> None:
        module.forget_debug_sections()


@final
class SourceBook(_Book):
    """The book of the modules, as they were given, that a cache keeps for profiles."""

    __slots__ = ()

    def __init__(self, limit: int = SOURCE_BOOK_LIMIT) -> None:
        super().__init__(limit)

    def add(self, module: CachedModule) -> None:
        """Count the source of a module, and free others if they do not fit."""
        if module.source is not None and module not in self._sizes:
            self._count(module, module.source.size)

    def _free(self, module: CachedModule) -> None:
        module.source = None
