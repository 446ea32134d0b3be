"""An ABI that puts a part before the user's module, for tests of graphs on both engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from kits import Kit, add

from trio_wasmcache import Function, InstanceCache
from trio_wasmcache._abi.base import Abi, Binding, LayeredAbi
from trio_wasmcache._abi.plain import Plain
from trio_wasmcache._core.wasm.graph import FromPart, Layer, Part
from trio_wasmcache._core.wasm.reader import FuncType, ModuleInfo, read_module

ONE = FuncType(("i64",), ("i64",))


@frozen
class TwoParts(LayeredAbi):
    """The plain ABI, for modules that import ``part.run``, which a part named ``ours`` exports."""

    wasm: bytes = field(repr=False, converter=bytes)
    plain: Abi = field(factory=Plain, eq=False)

    @property
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        return {("part", "run"): ONE}

    def layer(self, info: ModuleInfo, hosts: Mapping[tuple[str, str], int], first: int) -> Layer:
        part = Part("ours", self.wasm, read_module(self.wasm), wiring={}, constant=True)
        return Layer((part,), {("part", "run"): FromPart("ours", "run")})

    def bind(self, *args: Any) -> Binding:
        return self.plain.bind(*args)


async def add_two_parts(
    cache: InstanceCache,
    kit: Kit,
    part: bytes,
    *,
    name: str = "f",
    pages: int = 1,
    slow_start: bool = False,
    **more: Any,
) -> Function:
    """Register a function that gives what ``run`` of a part gives for its argument."""
    wasm = kit.importing(pages=pages, slow_start=slow_start)
    function: Function = await add(cache, name, wasm, abi=TwoParts(part), **more)
    return function
