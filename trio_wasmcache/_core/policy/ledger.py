"""The book of bytes: what idle instances, loaded code and running stacks add up to.

It only counts. Who goes when a sum is too large is decided in `policy`; the order of last use is
in `lru`. These sums are kept, each with its own limit:

- `total_size`: idle instances, as large as they are;
- `running_size`: instances that are loading or running, as large as they may become;
- `code_size` + `stacks`: code of loaded modules, whatever uses them, and one stack for each
  instance that is loading or running;
- `address_space` and `mappings`: what instances and loaded code reserve of the process's addresses
  and of the kernel's table of mappings. An idle instance reserves as much as a running one, so a
  hit does not change them.

`evictable` holds the modules whose code would go if their idle instances went, least recently
used first, and `evictable_code` is their sum, so that "can room be made at all?" is one
subtraction.
"""

from __future__ import annotations

import sys

from attrs import Factory, define, field

from .lru import LRU
from .records import FunctionRecord, Instance, Module


@define(eq=False)
class Ledger:
    """Sums over instances and modules; every method is O(1)."""

    stack_size: int
    code_limit: int = sys.maxsize
    """`max_code_size`; changed by `limit_code`."""
    total_size: int = 0
    running_size: int = 0
    code_size: int = 0
    address_space: int = 0
    mappings: int = 0
    instances: int = 0
    running: int = 0
    """Of the instances; loading ones included."""
    loaded_modules: int = 0
    evictable: LRU[Module] = Factory(lambda: LRU[Module]())
    evictable_code: int = 0
    most_running: int = field(init=False)
    """As many may run, with the code that is loaded: what a hit asks, worked out before."""

    def __attrs_post_init__(self) -> None:
        self._reckon()

    def limit_code(self, limit: int) -> None:
        """Code and stacks may take so many bytes from now on."""
        self.code_limit = limit
        self._reckon()

    def _reckon(self) -> None:
        self.most_running = (self.code_limit - self.code_size) // self.stack_size

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
            self.address_space += module.code_size
            self.mappings += module.mappings
            self._reckon()
            self.loaded_modules += 1
        self._start(function)
        module.users += 1
        self.instances += 1
        return first

    def reserve(self, instance: Instance, address_space: int, mappings: int) -> None:
        """Note that an instance reserves so much from now on, whatever it did."""
        self.address_space += address_space - instance.address_space
        self.mappings += mappings - instance.mappings
        instance.address_space, instance.mappings = address_space, mappings

    def resume(self, instance: Instance) -> None:
        """An idle instance runs."""
        self.total_size -= instance.size
        self._start(instance.entry.function)

    def suspend(self, instance: Instance) -> None:
        """A running instance becomes idle, with the size it has now."""
        self.total_size += instance.size
        self._stop(instance.entry.function)

    def leave_running(self, instance: Instance) -> bool:
        """A loading or running instance goes; True if its module is to be unloaded."""
        function = instance.entry.function
        module = function.module
        self.reserve(instance, 0, 0)
        module.users -= 1
        self.instances -= 1
        self._stop(function)
        return self._left(module)

    def leave_idle(self, instance: Instance) -> bool:
        """An idle instance goes; True if its module is to be unloaded."""
        module = instance.entry.function.module
        self.total_size -= instance.size
        self.reserve(instance, 0, 0)
        module.users -= 1
        self.instances -= 1
        return self._left(module)

    def _start(self, function: FunctionRecord) -> None:
        """One more runs."""
        module = function.module
        if module in self.evictable:
            self.evictable.remove(module)
            self.evictable_code -= module.code_size
        module.running += 1
        self.running += 1
        self.running_size += function.worst_size

    def _stop(self, function: FunctionRecord) -> None:
        """One less runs."""
        module = function.module
        module.running -= 1
        self.running -= 1
        self.running_size -= function.worst_size
        if module.running == 0:
            self.evictable.touch(module)
            self.evictable_code += module.code_size

    def _left(self, module: Module) -> bool:
        if module.users:
            return False
        self.code_size -= module.code_size
        self.address_space -= module.code_size
        self.mappings -= module.mappings
        self._reckon()
        self.loaded_modules -= 1
        if module in self.evictable:
            self.evictable.remove(module)
            self.evictable_code -= module.code_size
        return True
