"""What a guest of the zoo is, what it must get, and how it is put to the test.

1. A guest is refused by `register`, fails with an error of ours, or gives a harmless right answer.
2. Whatever it does, what it got is short, and has no control character that it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wasmtime
from attrs import Factory, field, frozen

from trio_wasmcache import CacheConfig, Function, InstanceCache, MiB, Wasi
from trio_wasmcache._runtime.host import Importable

Imports = Mapping[str, Mapping[str, Importable]]
# Loops end soon, and bombs are small: it is the limits that are tested, not their size.
CONFIG = CacheConfig(
    total_fuel=1_000_000,
    memory_limit=4 * MiB,
    table_limit=5000,
    max_instance_size=2 * MiB,
    max_result_size=1 * MiB,
)
MAX_MESSAGE = 6000


@frozen
class Refused:
    """`register` raises this."""

    kind: type[Exception]
    words: str


@frozen
class Fails:
    """Loading or calling it raises this."""

    kind: type[Exception]
    words: str


@frozen
class Gives:
    """It does no harm, and this is its result."""

    value: Any


@frozen
class Guest:
    """One animal: a module, how it is called, and what it must get."""

    name: str
    attacks: str
    source: str | Callable[[], bytes]
    """The fields of a module as text, or what makes the bytes of one."""
    gets: Refused | Fails | Gives
    args: Sequence[str] = ("i64",)
    returns: str | None = "i64"
    values: tuple[Any, ...] = (7,)
    abi: Any = None
    export: str = "run"
    imports: Callable[[InstanceCache, str], Imports] | None = None
    """Made for the cache, and for the name that it is registered under there."""
    wasi: Wasi | None = field(default=None, kw_only=True)
    at_once: int = field(default=1, kw_only=True)
    """How many tasks call it at the same time, each in an instance of its own."""
    rows: int = field(default=0, kw_only=True)
    """It is called for a batch of as many equal rows; 0: in a call."""
    concurrency: int = field(
        default=Factory(lambda self: self.at_once, takes_self=True), kw_only=True
    )

    def wasm(self) -> bytes:
        """What is given to `register`."""
        if callable(self.source):
            return self.source()
        made: bytes = wasmtime.wat2wasm(f"(module {self.source})")
        return made

    async def register(
        self, cache: InstanceCache, name: str, wasm: bytes, isolation: str = "reuse"
    ) -> Function:
        """Bring it in, under a name of our own."""
        return await cache.register(
            name,
            wasm,
            args=self.args,
            returns=self.returns,
            export=self.export,
            abi=self.abi,
            imports=self.imports and self.imports(cache, name),
            wasi=self.wasi,
            concurrency=self.concurrency,
            isolation=isolation,
        )

    async def attack(self, cache: InstanceCache, name: str, wasm: bytes) -> Any:
        """Register it, if it is not there, and call it: what came of it, be it an exception."""
        try:
            if not any(function.name == name for function in cache.functions()):
                await self.register(cache, name, wasm)
            async with cache.acquire(name, self.args) as lease:
                if self.rows:
                    return await lease.map([[value] * self.rows for value in self.values])
                return await lease.call(*self.values)
        except Exception as error:
            return error

    def check(self, got: Any) -> None:
        """Whether that is what it must get."""
        if isinstance(self.gets, Gives):
            assert got == self.gets.value, f"{self.name}: {got!r:.500}"
            return
        assert type(got) is self.gets.kind, f"{self.name}: {got!r:.500}"
        message = str(got)
        assert self.gets.words in message, f"{self.name}: {message:.500}"
        assert len(message) <= MAX_MESSAGE, f"{self.name}: a message of {len(message)}"
        # Our own line breaks stand before the frames of a backtrace, and between wasmtime's lines.
        assert message.replace("\n", "").isprintable(), f"{self.name}: {message!r:.500}"


def function(body: str, rest: str = "", signature: str = "(param i64) (result i64)") -> str:
    """The fields of a module whose function is ``run``."""
    return f'{rest} (func $run (export "run") {signature} {body})'
