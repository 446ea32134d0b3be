"""The public handle of a registered function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import trio
from attrs import field, frozen

from ._core.keys import FunctionKey
from ._lease import Lease


@final
@frozen
class Function:
    """A registered UDF: what it is called, its types, and what was made of it.

    A value, and a handle: `acquire` and `call` use whatever generation is current.
    """

    name: str
    args: tuple[str, ...]
    returns: str | tuple[str, ...] | None
    """As registered: None if it returns nothing, several types if a call gives a tuple."""
    generation: int
    """1 at first; each replacement makes a new one."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""
    code_size: int
    """Bytes of machine code while the module is loaded, in whole system pages."""
    worst_size: int
    """Bytes that one instance of it may touch at most, under the limits it was registered with."""
    isolation: str
    isolation_verdict: str
    """Why the isolation is what it is."""
    _acquire: Callable[[str, tuple[str, ...]], Lease] = field(repr=False, eq=False)

    @property
    def key(self) -> FunctionKey:
        """Name and argument types together; `str()` of it is how messages name the function."""
        return FunctionKey(self.name, self.args)

    def acquire(self) -> Lease:
        """`InstanceCache.acquire` of this name and these types."""
        return self._acquire(self.name, self.args)

    @trio.lowlevel.enable_ki_protection
    async def call(self, *values: Any) -> Any:
        """Acquire, call once, recycle. See `Lease.call`.

        **Checkpoint:** always.
        **Cancellation:** nothing is held; a call that was under way is stopped.
        """
        async with self.acquire() as lease:
            return await lease.call(*values)
