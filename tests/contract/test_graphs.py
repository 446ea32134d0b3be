"""Functions whose instances consist of several core modules: a part of ours, and the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from kits import PAGE, Kit, add

from trio_wasmcache._abi.base import Abi, Binding, LayeredAbi
from trio_wasmcache._abi.plain import Plain
from trio_wasmcache._core.wasm.graph import FromPart, Layer, Part
from trio_wasmcache._core.wasm.reader import FuncType, ModuleInfo, read_module

ONE = FuncType(("i64",), ("i64",))


@frozen
class TwoParts(LayeredAbi):
    """The plain ABI, for modules that import ``part.run``: a module of ours has it."""

    wasm: bytes = field(repr=False, converter=bytes)
    plain: Abi = field(factory=Plain)

    @property
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        return {("part", "run"): ONE}

    def layer(self, info: ModuleInfo, hosts: Mapping[tuple[str, str], int], first: int) -> Layer:
        part = Part("ours", self.wasm, read_module(self.wasm), wiring={}, constant=True)
        return Layer((part,), {("part", "run"): FromPart("ours", "run")})

    def bind(self, *args: Any) -> Binding:
        return self.plain.bind(*args)


async def test_a_function_of_two_parts_is_called(kit: Kit) -> None:
    """The user's module imports a function of a part that has a memory of its own."""
    async with kit.open() as cache:
        abi = TwoParts(kit.adding(5, pages=3))
        f = await add(cache, "f", kit.importing(pages=2), abi=abi)
        async with f.acquire() as lease:
            assert await lease.call(1) == 6
            assert lease.memory.size == 2 * PAGE
            # Both memories, and one page for the rest.
            assert lease.size == (2 + 3 + 1) * PAGE
        assert cache.stats().total_size == 6 * PAGE
        assert f.worst_size >= 6 * PAGE
        async with f.acquire() as lease:
            assert await lease.call(2) == 7
