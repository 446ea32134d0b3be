"""Load compiled code, and link it with its host functions: all that instances of it share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ctypes import byref, c_char, c_void_p
from typing import final

from ..._core.errors import LinkError
from ..base import Artifact, HostImport, PartCode
from . import native
from .compiler import deserialize, image_of
from .errors import Ending, Offsets, take_error
from .function import Callers
from .hosts import HostTable
from .plan import PartPlan, RestorePlan, make_plan
from .residency import Range
from .store import Tally

_INSTANCE = c_char * native.INSTANCE_SIZE


@final
class Start(Ending):
    """What C writes to while an instance starts; afterwards the next one may use it."""

    __slots__ = ("handle",)

    def __init__(self, offsets: Offsets) -> None:
        super().__init__(offsets)
        self.handle = _INSTANCE()


@final
class LinkedPart:
    """Owns the executable code of one part of a graph, and what it takes from the host.

    Args:
        engine: the native engine.
        code: the code at rest.
        plan: of the part.
        hosts: the host functions.

    Raises:
        LinkError: wasmtime would not link it after all.
        NoMemoryError: the system has no memory for it.
        LoadError: the engine could not make it.
    """

    def __init__(self, engine: int, code: PartCode, plan: PartPlan, hosts: HostTable) -> None:
        self.plan = plan
        self.module: int = 0
        self.pre: int = 0
        """What instances are made of if it takes nothing from other parts; 0: it does."""
        self._linker: int = 0
        try:
            self.module = deserialize(engine, code.data)
            self.image: Range = image_of(self.module)
            if not plan.takes:
                self._linker = native.linker_new(engine)
                define_hosts(self._linker, plan.hosts, hosts)
                self.pre = make_pre(self._linker, self.module)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        _delete(
            self,
            ("pre", native.instance_pre_delete),
            ("_linker", native.linker_delete),
            ("module", native.module_delete),
        )


@final
class Linkers:
    """Owns the linkers by which parts of a graph get what other parts export.

    There is one with the host functions, which is cloned for each instance that is being made. One
    clone is kept for the next instance.
    """

    def __init__(self) -> None:
        self._base = 0
        self._spare: list[int] = []
        self._open = True

    def make(self, engine: int) -> int:
        """Make the linker that is cloned, and return it, so that host functions are defined."""
        self._base = native.linker_new(engine)
        native.linker_allow_shadowing(self._base, True)
        return self._base

    def take(self) -> int:
        """Return a linker for one instance, which may have what belonged to an earlier one."""
        return self._pop() or native.linker_clone(self._base)

    def give(self, linker: int) -> None:
        """Take back a linker, which nothing uses any more."""
        self._spare.append(linker)
        if not self._open or len(self._spare) > 1:
            self._free()

    def close(self) -> None:
        """Free the linkers that are not in use; those that are, once they are given back."""
        self._open = False
        self._free()
        _delete(self, ("_base", native.linker_delete))

    def _pop(self) -> int:
        try:
            return self._spare.pop()  # in one step, as instances are started in threads, too
        except IndexError:
            return 0

    def _free(self) -> None:
        while linker := self._pop():
            native.linker_delete(linker)


def define_hosts(linker: int, names: Iterable[tuple[str, str, int]], hosts: HostTable) -> None:
    """Define host functions by names; `LinkError` if wasmtime would not.

    Args:
        linker: where they are defined.
        names: module, name and index of each.
        hosts: the host functions.
    """
    if problems := hosts.define(linker, names):
        raise LinkError("; ".join(problems))


def make_pre(linker: int, module: int) -> int:
    """Return what instances of a module are made of; `LinkError` if it can't be linked."""
    made = c_void_p()
    problem = native.linker_instantiate_pre(linker, module, byref(made))
    if problem:
        raise LinkError(take_error(problem))
    return native.pointer_in(made)


def _delete(owner: object, *fields: tuple[str, Callable[[int], None]]) -> None:
    """Free what fields of an owner point at, and have them point at nothing."""
    for name, delete in fields:
        pointer = getattr(owner, name)
        if pointer:
            setattr(owner, name, 0)
            delete(pointer)


class LinkedModule:
    """Owns executable code, and its native parts. Base of `WasmtimeModule`.

    Args:
        engine: the native engine; of it, this keeps a reference of its own.
        artifact: the code at rest.
        hosts: the host functions that it may import.
        tally: where its stores are counted, and its code, once `count` was called.

    Raises:
        LinkError: wasmtime would not link it after all.
        NoMemoryError: the system has no memory for it.
        LoadError: the engine could not make it.
    """

    def __init__(
        self, engine: int, artifact: Artifact, hosts: tuple[HostImport, ...], tally: Tally
    ) -> None:
        self.tally = tally
        self._code_size = artifact.code_size
        self._counted: int = 0
        self.plan = make_plan(artifact)
        self.reserved: tuple[int, int] = (artifact.address_space, artifact.mappings)
        self.hosts = HostTable(hosts)
        restore = artifact.restore
        self.restore: RestorePlan | None = restore if isinstance(restore, RestorePlan) else None
        self.restorer: int = 0
        self.engine: int = native.engine_clone(engine)
        self.starts: list[Start] = []
        """A start that the next instance may use; empty while one uses it."""
        self.callers = Callers(
            self.plan.function_types, bool(hosts), self.plan.offsets, artifact.long_calls
        )
        self.pre: int = 0
        self.at_once: bool = artifact.graph is None and not self.hosts.imports
        """Whether instances can be made synchronously: wasmtime refuses that where host functions
        are asynchronous. Start functions are called later: see `plan.starts_later`."""
        self.parts: tuple[LinkedPart, ...] = ()
        """Parts of the graph, if there is one; else `pre` is there."""
        self.part_callers: tuple[Callers, ...] = ()
        """How functions of each of these parts are called."""
        self.linkers = Linkers()
        """Linkers of the parts that import from others."""
        self.images: list[Range] = []
        self._linker: int = 0
        self._module: int = 0
        try:
            if artifact.graph is None:
                self._linker = native.linker_new(engine)
                self._module = deserialize(engine, artifact.data)
                self.images.append(image_of(self._module))
                if problems := self.hosts.define(self._linker):
                    raise LinkError("; ".join(problems))
                self.pre = make_pre(self._linker, self._module)
            for code, plan in zip(artifact.codes, self.plan.parts, strict=True):
                part = LinkedPart(engine, code, plan, self.hosts)
                self.parts += (part,)
                self.images.append(part.image)
                types, offsets = plan.plan.function_types, self.plan.offsets
                self.part_callers += (Callers(types, bool(hosts), offsets),)
            self._link_hosts(engine)
            if self.restore is not None and self.restore.code:
                self.restorer = deserialize(engine, self.restore.code)
                self.images.append(image_of(self.restorer))
        except BaseException:
            self.close()
            raise

    def _link_hosts(self, engine: int) -> None:
        """Make the linker for the parts that import from others."""
        several = [part.plan for part in self.parts if part.plan.takes]
        if not several:
            return
        names = dict.fromkeys(name for plan in several for name in plan.hosts)
        define_hosts(self.linkers.make(engine), names, self.hosts)

    @property
    def is_open(self) -> bool:
        """Whether instances can be made of it."""
        return bool(self.pre or self.parts)

    def native_parts(self, numbers: Sequence[int]) -> list[int]:
        """Return the native modules of some parts of the graph; without one, the module alone."""
        return [self.parts[number].module for number in numbers] if self.parts else [self._module]

    def count(self) -> None:
        """Count its code until it is closed: on the event loop, as the tally knows no threads."""
        self._counted = self._code_size
        self.tally.count_code(self._counted)

    def close(self) -> None:
        counted, self._counted = self._counted, 0
        self.tally.count_code(-counted)
        parts, self.parts = self.parts, ()
        for part in parts:
            part.close()
        self.linkers.close()
        _delete(
            self,
            ("pre", native.instance_pre_delete),
            ("_linker", native.linker_delete),
            ("_module", native.module_delete),
            ("restorer", native.module_delete),
            ("engine", native.wasm_engine_delete),
        )
