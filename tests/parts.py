"""ABIs that put parts beside the user's module, for tests of graphs on both engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from wasmtime import wat2wasm

from trio_wasmcache._abi import ABIS
from trio_wasmcache._abi.base import Abi, Binding, LayeredAbi
from trio_wasmcache._abi.marks import SCYLLA_VERSION
from trio_wasmcache._abi.plain import Plain
from trio_wasmcache._core.wasm.graph import FromHost, FromPart, Layer, Part
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

    def layer(
        self, what: str, info: ModuleInfo, hosts: Mapping[tuple[str, str], Any], first: int
    ) -> Layer:
        part = Part("ours", self.wasm, read_module(self.wasm), wiring={}, constant=True)
        return Layer((part,), {("part", "run"): FromPart("ours", "run")})

    def bind(self, *args: Any) -> Binding:
        return self.plain.bind(*args)


@frozen
class Relayed(LayeredAbi):
    """Another ABI, with a part between the module and its host functions, and one after it.

    All calls of the host go through the part, which changes nothing.
    """

    abi: Any = field(default=None, eq=False)
    """As in `register`."""

    @property
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        return {}

    def layer(
        self, what: str, info: ModuleInfo, hosts: Mapping[tuple[str, str], Any], first: int
    ) -> Layer:
        direct = {name: index for name, (index, _) in hosts.items() if index is not None}
        types = {
            (item.module, item.name): item.type
            for item in info.imports
            if isinstance(item.type, FuncType)
        }
        fields = ["(global (mut i32) (i32.const 0))"]
        for name, index in direct.items():
            params, results = (" ".join(many) for many in (types[name].params, types[name].results))
            signature = f"(param {params}) (result {results})"
            values = " ".join(f"(local.get {n})" for n in range(len(types[name].params)))
            fields.insert(0, f'(import "h" "{index}" (func $f{index} {signature}))')
            fields.append(f'(func (export "{index}") {signature} (call $f{index} {values}))')
        wasm = bytes(wat2wasm(f"(module {' '.join(fields)})"))
        relay = Part(
            "relay",
            wasm,
            read_module(wasm),
            {("h", str(index)): FromHost(index) for index in direct.values()},
            relays={str(index): index for index in direct.values()},
        )
        after = bytes(wat2wasm('(module (global (mut i32) (i32.const 0)) (func (export "f")))'))
        return Layer(
            (relay,),
            {name: FromPart("relay", str(index)) for name, index in direct.items()},
            (Part("after", after, read_module(after), {}),),
        )

    def bind(self, function: str, export: str, *rest: Any) -> Binding:
        abi = ABIS.get(self.abi) if isinstance(self.abi, str) else self.abi
        if abi is None:
            abi = ABIS["scylla" if SCYLLA_VERSION in rest[2].globals else "plain"]
        return abi.bind(function, export, *rest)
