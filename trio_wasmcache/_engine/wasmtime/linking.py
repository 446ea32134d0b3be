"""Load compiled code, and link it with its host functions: all that instances of it share."""

from __future__ import annotations

from ctypes import byref, c_char, c_void_p
from typing import final

from ..._core.errors import LinkError
from ..base import Artifact, HostImport
from . import native
from .compiler import deserialize, image_of
from .errors import Ending, take_error
from .function import Callers
from .hosts import HostTable
from .plan import RestorePlan, make_plan
from .residency import Range
from .store import Tally

_INSTANCE = c_char * native.INSTANCE_SIZE


@final
class Start(Ending):
    """What C writes to while an instance starts; afterwards the next one may use it."""

    __slots__ = ("handle",)

    def __init__(self, shift: int) -> None:
        super().__init__(shift)
        self.handle = _INSTANCE()


class LinkedModule:
    """Owns executable code, and its native parts. Base of `WasmtimeModule`.

    Args:
        engine: the native engine; of it, this keeps a reference of its own.
        artifact: the code at rest.
        hosts: the host functions that it may import.
        tally: where its stores are counted.

    Raises:
        LinkError: wasmtime would not link it after all.
        NoMemoryError: the system has no memory for it.
        LoadError: the engine could not make it.
    """

    def __init__(
        self, engine: int, artifact: Artifact, hosts: tuple[HostImport, ...], tally: Tally
    ) -> None:
        self.tally = tally
        self.plan = make_plan(artifact)
        self.reserved: tuple[int, int] = (artifact.address_space, artifact.mappings)
        self.hosts = HostTable(hosts)
        restore = artifact.restore
        self.restore: RestorePlan | None = restore if isinstance(restore, RestorePlan) else None
        self.restorer: int = 0
        self.engine: int = native.engine_clone(engine)
        self.starts: list[Start] = []
        """One that an instance may start with, or none."""
        self.callers = Callers(self.plan.function_types, bool(hosts), self.plan.code_shift)
        self.pre: int = 0
        self._linker: int = native.linker_new(engine)
        self._module: int = 0
        try:
            self._module = deserialize(engine, artifact.data)
            self.images: list[Range] = [image_of(self._module)]
            if self.restore is not None and self.restore.code:
                self.restorer = deserialize(engine, self.restore.code)
                self.images.append(image_of(self.restorer))
            self._link()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for name, delete in (
            ("pre", native.instance_pre_delete),
            ("_linker", native.linker_delete),
            ("_module", native.module_delete),
            ("restorer", native.module_delete),
            ("engine", native.wasm_engine_delete),
        ):
            pointer = getattr(self, name)
            if pointer:
                setattr(self, name, 0)
                delete(pointer)

    def _link(self) -> None:
        if problems := self.hosts.define(self._linker):
            raise LinkError("; ".join(problems))
        made = c_void_p()
        problem = native.linker_instantiate_pre(self._linker, self._module, byref(made))
        if problem:
            raise LinkError(take_error(problem))
        self.pre = native.pointer_in(made)
