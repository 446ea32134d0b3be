"""The book of bytes: sums over idle instances, loaded code and running stacks.

It only counts. `instances` decides what to evict when a sum is too large; `lru` keeps the order of
last use. Each of these sums has its own limit:

- `total_size`: idle instances, at their present size; `GroupRecord.idle_size` is the same for one
  group;
- `running_size`: instances that are loading or running, at their largest possible size;
- `code_size` + `stacks`: code of loaded modules, whatever uses them, and the stack of each
  instance that is loading or running;
- `address_space` and `mappings`: addresses of the process and entries in the kernel's table of
  mappings, reserved by instances and loaded code. An idle instance reserves as much as a running
  one, so a hit does not change them.

`evictable` holds the modules whose code would be unloaded if their idle instances were evicted,
least recently used first, and `evictable_code` is the sum of their code, so that "can enough be
freed at all?" is one subtraction.
"""

from __future__ import annotations

import sys

from .lru import LRU
from .records import Instance, Module


class Ledger:
    """Sums over instances and modules; every method is O(1)."""

    __slots__ = (
        "address_space",
        "code_limit",
        "code_size",
        "evictable",
        "evictable_code",
        "instances",
        "loaded_modules",
        "mappings",
        "most_running",
        "running",
        "running_size",
        "stack_size",
        "total_size",
    )

    def __init__(self, stack_size: int, code_limit: int = sys.maxsize) -> None:
        self.stack_size: int = stack_size
        self.code_limit: int = code_limit
        """`max_code_size`; changed by `limit_code`."""
        self.total_size: int = 0
        self.running_size: int = 0
        self.code_size: int = 0
        self.address_space: int = 0
        self.mappings: int = 0
        self.instances: int = 0
        self.running: int = 0
        """Number of `instances` that are loading or running."""
        self.loaded_modules: int = 0
        self.evictable: LRU[Module] = LRU[Module]()
        self.evictable_code: int = 0
        self.most_running: int
        """Number of stacks that fit beside the loaded code, computed ahead for the hit."""
        self._reckon()

    def limit_code(self, limit: int) -> None:
        """Set the limit of code and stacks together (bytes)."""
        self.code_limit = limit
        self._reckon()

    def _reckon(self) -> None:
        self.most_running = (self.code_limit - self.code_size) // self.stack_size

    @property
    def idle(self) -> int:
        """Number of `instances` that are idle."""
        return self.instances - self.running

    @property
    def stacks(self) -> int:
        """Bytes of the stacks of all instances that are loading or running."""
        return self.running * self.stack_size

    @property
    def used(self) -> int:
        """Bytes that count against `max_code_size`."""
        return self.code_size + self.running * self.stack_size

    def enter(self, instance: Instance) -> bool:
        """Count a new instance that begins to load; return whether to load its module too."""
        module = instance.module
        first = module.users == 0
        if first:
            self.code_size += module.code_size
            self.address_space += module.code_size
            self.mappings += module.mappings
            self._reckon()
            self.loaded_modules += 1
        self._start(instance)
        module.users += 1
        self.instances += 1
        return first

    def reserve(self, instance: Instance, address_space: int, mappings: int) -> None:
        """Record that `instance` reserves this much now (bytes, mappings), replacing the old."""
        self.address_space += address_space - instance.address_space
        self.mappings += mappings - instance.mappings
        instance.address_space, instance.mappings = address_space, mappings

    def resume(self, instance: Instance) -> None:
        """Count an idle instance as running."""
        self.total_size -= instance.size
        instance.entry.group.idle_size -= instance.size
        self._start(instance)

    def suspend(self, instance: Instance) -> None:
        """Count a running instance as idle, with its present size."""
        self.total_size += instance.size
        instance.entry.group.idle_size += instance.size
        self._stop(instance)

    def leave_running(self, instance: Instance) -> bool:
        """Subtract a loading or running instance; return whether to unload its module."""
        module = instance.module
        self.reserve(instance, 0, 0)
        module.users -= 1
        self.instances -= 1
        self._stop(instance)
        return self._left(module)

    def leave_idle(self, instance: Instance) -> bool:
        """Subtract an idle instance; return whether to unload its module."""
        module = instance.module
        self.total_size -= instance.size
        instance.entry.group.idle_size -= instance.size
        self.reserve(instance, 0, 0)
        module.users -= 1
        self.instances -= 1
        return self._left(module)

    def _start(self, instance: Instance) -> None:
        """Count one more running instance."""
        module = instance.module
        if module in self.evictable:
            self.evictable.remove(module)
            self.evictable_code -= module.code_size
        module.running += 1
        self.running += 1
        self.running_size += instance.entry.function.worst_size

    def _stop(self, instance: Instance) -> None:
        """Count one less running instance."""
        module = instance.module
        module.running -= 1
        self.running -= 1
        self.running_size -= instance.entry.function.worst_size
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
