"""Start an instance of a graph: instantiate its parts one after the other, and run their starts.

1. Each step is a call future of its own in the store, so the runner drives the start of a graph as
   that of any module: in slices, with one supply of fuel, until `Store.poll` says that it is over.
2. Parts that have little to link and nothing to run are instantiated together. Others may run once
   that was `ENOUGH`, and after each start function.
3. A part that takes something from another one is linked anew for each instance, as what it takes
   belongs to a store. One linker serves all parts: each part's exports are given to it at once, by
   the names that importing parts were compiled with.
   Linkers are used again, by one instance after the other, as names that are there already are
   defined in less time. Each part finds only what earlier parts of its own instance have defined,
   never what belonged to another store, as the names are always the same.
4. Start functions are exported, not declared (`compiler`), and are called once their part is there.
   Till then, host functions could not find its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias, final

from ..._core.errors import LoadError
from . import native
from .errors import take_error
from .hosts import Invokes
from .linking import LinkedModule, LinkedPart, Start
from .memory import InstanceMemory, MemoryWindow, SuspendedMemory
from .plan import START
from .store import Pieces, Store

ENOUGH = 300
"""Weight of parts that are instantiated together: about half a millisecond."""
Lent: TypeAlias = InstanceMemory | SuspendedMemory | MemoryWindow
"""A memory of a part that others may still have when the store is closed."""


@final
class Starting:
    """The start of one instance of a graph: see `store.Stages`."""

    # It does not keep the store, which keeps it: that would be a cycle for the garbage collector.

    def __init__(self, module: LinkedModule, start: Start) -> None:
        self._parts: tuple[LinkedPart, ...] = module.parts
        self._linkers = module.linkers
        self._user = module.plan.user
        self._hosts = module.hosts.imports
        self.invokes: Invokes | None = Invokes(module.hosts) if module.hosts.reentrant else None
        self._memories: dict[str, bytes] = {}  # {name of a part: handle of its memory}
        self._start = start
        self._lent: dict[Hashable, Lent] = {}
        self._linker = 0
        self._weight = 0
        """Weight of the parts that were instantiated since others could run."""
        self._called = b""
        """Handle of a start function that is under way: C goes on reading it."""
        self._runs = self._over = False
        """Whether a start function is what is under way; whether all of them are over."""
        self.handles: tuple[bytes, ...] = ()
        """Instances of the parts that are there, in order."""

    def begin(self, store: Store) -> None:
        """Begin to instantiate the next part."""
        start, part = self._start, self._parts[len(self.handles)]
        store.ending = start
        if part.pre:
            store.future = native.instance_pre_instantiate_async(
                part.pre, store.context, start.handle, start.trap_ref, start.error_ref
            )
            return
        store.future = native.linker_instantiate_async(
            self._given(),
            store.context,
            part.module,
            start.handle,
            start.trap_ref,
            start.error_ref,
        )

    @property
    def pieces(self) -> Pieces:
        return tuple(
            (handle, part.plan.plan)
            for handle, part in zip(self.handles, self._parts, strict=False)
        )

    def memory_of(self, index: int) -> bytes | None:
        return self._memories.get(self._hosts[index].part)

    def next(self, store: Store) -> bool | None:
        start = self._start
        if self._over or start.trap or start.error:
            return True
        if not self._runs:
            self._note_part(store)
            if self._parts[len(self.handles) - 1].plan.starts:
                self._run_start(store)
                return None
        self._runs = False
        if len(self.handles) == len(self._parts):
            self._over = True
            return True
        part = self._parts[len(self.handles) - 1].plan
        self._weight += part.weight
        pause = part.starts or self._weight >= ENOUGH
        if pause:
            self._weight = 0
        store.end()
        self.begin(store)
        return False if pause else None

    def lend(self, key: Hashable, make: Callable[[], Lent]) -> Lent:
        """Return a memory of a part, which holds nothing any more once the store is closed.

        Args:
            key: names it; there is one for each.
            make: makes it, the first time.
        """
        memory = self._lent.get(key)
        if memory is None:
            memory = self._lent[key] = make()
        return memory

    def close(self) -> None:
        self._unlink()
        for memory in self._lent.values():
            memory.end()

    def _unlink(self) -> None:
        if self._linker:
            linker, self._linker = self._linker, 0
            self._linkers.give(linker)

    def _given(self) -> int:
        """Return the linker with all that later parts take."""
        if not self._linker:
            self._linker = self._linkers.take()
        return self._linker

    def _note_part(self, store: Store) -> None:
        """Keep what was instantiated, and put its functions in tables."""
        number = len(self.handles)
        plan = self._parts[number].plan
        self.handles += (self._start.handle.raw,)
        if len(self.handles) == len(self._parts):
            self._unlink()
        elif plan.gives:
            problem = native.linker_define_instance(
                self._given(), store.context, plan.gives, len(plan.gives), self.handles[number]
            )
            if problem:
                raise LoadError(
                    f"wasmtime would not link part {plan.name!r}: {take_error(problem)}"
                )
        memory = plan.plan.memory_name
        if memory is not None:
            handle = self._memories[plan.name] = store.export(memory, self.handles[number])
            if number == self._user:
                store.own_memory = InstanceMemory(store.context, handle, store.plan.remedy)

    def _run_start(self, store: Store) -> None:
        """Call the start function of the part that is there now."""
        start = self._start
        store.end()
        self._runs = True
        store.ending = start
        self._called = store.export(START, self.handles[-1])
        store.future = native.func_call_async(
            store.context, self._called, 0, 0, 0, 0, start.trap_ref, start.error_ref
        )
