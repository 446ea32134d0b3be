"""The book of bytes: what idle instances, loaded code and running stacks add up to.

It only counts. Who goes when a sum is too large is decided in `policy`; the order of last use is
in `lru`. Three sums are kept, each with its own limit:

- `total_size`: idle instances, as large as they are;
- `running_size`: instances that are loading or running, as large as they may become;
- `code_size` + `stacks`: code of loaded modules, whatever uses them, and one stack for each
  instance that is loading or running.

`evictable` holds the modules whose code would go if their idle instances went, least recently
used first, and `evictable_code` is their sum, so that "can room be made at all?" is one
subtraction.
"""

from __future__ import annotations

from attrs import Factory, define

from .lru import LRU
from .records import FunctionRecord, Instance, Module


@define(eq=False)
class Ledger:
    """Sums over instances and modules; every method is O(1)."""

    stack_size: int
    total_size: int = 0
    running_size: int = 0
    code_size: int = 0
    instances: int = 0
    running: int = 0
    """Of the instances; loading ones included."""
    loaded_modules: int = 0
    evictable: LRU[Module] = Factory(lambda: LRU[Module]())
    evictable_code: int = 0

    @property
    def idle(self) -> int:
        """Of the instances."""
        return self.instances - self.running

    @property
    def stacks(self) -> int:
        """Bytes: one stack for each that is loading or running."""
        return self.running * self.stack_size

    @property
    def used(self) -> int:
        """Bytes against `max_code_size`."""
        return self.code_size + self.stacks

    def enter(self, function: FunctionRecord) -> bool:
        """A new instance of it begins to load; True if the module has to be loaded too."""
        module = function.module
        first = module.users == 0
        if first:
            self.code_size += module.code_size
            self.loaded_modules += 1
        self._start(function)
        module.users += 1
        self.instances += 1
        return first

    def resume(self, instance: Instance) -> None:
        """An idle instance runs."""
        function = instance.entry.function
        self.total_size -= instance.size
        self._start(function)
        del function.module.idle[instance]

    def suspend(self, instance: Instance) -> None:
        """A running instance becomes idle, with the size it has now."""
        function = instance.entry.function
        self.total_size += instance.size
        function.module.idle[instance] = None
        self._stop(function)

    def leave_running(self, function: FunctionRecord) -> bool:
        """A loading or running instance goes; True if its module is to be unloaded."""
        module = function.module
        module.users -= 1
        self.instances -= 1
        self._stop(function)
        return self._left(module)

    def leave_idle(self, instance: Instance) -> bool:
        """An idle instance goes; True if its module is to be unloaded."""
        module = instance.entry.function.module
        self.total_size -= instance.size
        del module.idle[instance]
        module.users -= 1
        self.instances -= 1
        return self._left(module)

    def _start(self, function: FunctionRecord) -> None:
        """One more runs; it is not among those of its module yet."""
        module = function.module
        if module.running == 0 and module in self.evictable:
            self.evictable.remove(module)
            self.evictable_code -= module.code_size
        self.running += 1
        self.running_size += function.worst_size

    def _stop(self, function: FunctionRecord) -> None:
        """One less runs; it is not among those of its module any more."""
        module = function.module
        self.running -= 1
        self.running_size -= function.worst_size
        if module.running == 0:
            self.evictable.touch(module)
            self.evictable_code += module.code_size

    def _left(self, module: Module) -> bool:
        if module.users:
            return False
        self.code_size -= module.code_size
        self.loaded_modules -= 1
        if module in self.evictable:
            self.evictable.remove(module)
            self.evictable_code -= module.code_size
        return True
