"""Every value type through every public place that takes a type, or meets one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
from attrs import frozen
from engine.support import quiet_cache, wat

from trio_wasmcache import (
    AbiError,
    BufferAbi,
    FuncType,
    Guest,
    HostFunction,
    InstanceCache,
    InvalidModuleError,
    Invoke,
    LinkError,
    ScyllaAbi,
    SignatureError,
    WasmCacheError,
)
from trio_wasmcache._core.wasm.types import NUMBER_TYPES, OTHER_TYPES, VALUE_TYPES
from trio_wasmcache.testing import check_invariants

# Those that a module may have here, and can't cross.
HELD = tuple(name for name in VALUE_TYPES.values() if name not in NUMBER_TYPES)
ZEROS = {
    **{name: f"({name}.const 0)" for name in NUMBER_TYPES},
    "v128": "(v128.const i64x2 0 0)",
    "funcref": "(ref.null func)",
    "externref": "(ref.null extern)",
    "exnref": "(ref.null exn)",
    "nullexnref": "(ref.null noexn)",
}
SCYLLA = '(global (export "_scylla_abi") i32 (i32.const 16)) (data (i32.const 16) "\\01")'


def module(kind: str) -> bytes:
    """Exports that take a value of a type, or give one, beside a function of numbers."""
    return wat(f"""(module (memory (export "memory") 1) {SCYLLA}
      (global (export "held") (mut {kind}) {ZEROS[kind]})
      (func (export "takes") (param {kind}))
      (func (export "gives") (result {kind}) {ZEROS[kind]})
      (func (export "run") (param i64) (result i64) (local.get 0)))""")


@frozen
class Own:
    """An ABI that says what it is told to, and calls what it is told to."""

    signature: Any
    calls: str = ""
    values: tuple[Any, ...] = ()
    lower: Callable[[tuple[Any, ...]], Sequence[Any]] | None = None
    lift: Callable[[Any], Any] | None = None

    @property
    def arity(self) -> int:
        return len(self.signature.params) if isinstance(self.signature, FuncType) else 0

    def bind(self, *_: object) -> Own:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"{values} do not fit")

    @property
    def steps(self) -> Any:
        return self._steps if self.calls else None

    def _steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        return (yield Invoke(self.calls, self.values))


I64 = FuncType(("i64",), ("i64",))


def check(cache: InstanceCache, error: BaseException, kind: str) -> None:
    """Whether an error names the type and the function, and nothing of the function stays."""
    assert repr(kind) in str(error)
    assert isinstance(error, (WasmCacheError, TypeError))
    assert cache.functions() == ()
    check_invariants(cache)


@pytest.mark.parametrize("kind", [*OTHER_TYPES, "(ref null $t)", "i65", ""])
@pytest.mark.parametrize("abi", ["plain", "buffer", "scylla", BufferAbi(), ScyllaAbi()])
async def test_no_other_type_can_be_declared(kind: str, abi: Any) -> None:
    """As an argument or as a result, by any ABI of ours, in a module that has such an export."""
    wasm = module(kind if kind in HELD else "v128")
    async with quiet_cache() as cache:
        for export, args, returns in (("takes", (kind,), None), ("gives", (), kind)):
            with pytest.raises(SignatureError) as caught:
                if abi in ("scylla", ScyllaAbi()) and returns is None:
                    returns = "int"
                await cache.register("f", wasm, args=args, returns=returns, export=export, abi=abi)
            assert cache.functions() == ()
            assert "f(" in str(caught.value)
            name = kind.replace(" ", "")
            assert repr(name) in str(caught.value) or abi in ("scylla", ScyllaAbi())
        check_invariants(cache)


@pytest.mark.parametrize("kind", [*OTHER_TYPES, "(ref null $t)", "i65", ""])
def test_no_host_function_has_one(kind: str) -> None:
    """As a parameter or as a result: the error names it."""
    for given in ({"params": (kind,)}, {"results": (kind,)}):
        with pytest.raises(SignatureError, match="host function") as caught:
            HostFunction(print, **given)  # type: ignore[arg-type]
        assert repr(kind.replace(" ", "")) in str(caught.value)


@pytest.mark.parametrize("kind", HELD)
async def test_an_abi_of_ones_own_that_says_so_is_refused(kind: str) -> None:
    """Its signature is that of the export, and yet no value of it can cross."""
    async with quiet_cache() as cache:
        for export, signature in (("takes", FuncType((kind,))), ("gives", FuncType((), (kind,)))):
            for calls in ("", "run"):
                with pytest.raises(SignatureError) as caught:
                    await cache.register(
                        "f", module(kind), args=(), export=export, abi=Own(signature, calls)
                    )
                check(cache, caught.value, kind)


@pytest.mark.parametrize("kind", OTHER_TYPES)
async def test_nor_may_it_say_so_of_another_export(kind: str) -> None:
    """The type's own name is in the error, not only that the signatures differ."""
    async with quiet_cache() as cache:
        with pytest.raises(SignatureError) as caught:
            abi = Own(FuncType((kind,), ("i64",)))
            await cache.register("f", module("i64"), args=(), export="run", abi=abi)
        check(cache, caught.value, kind)


@pytest.mark.parametrize(
    "signature", [None, "i64", (("i64",), ("i64",)), FuncType(("i64",), (64,)), FuncType("i64")]
)
async def test_a_signature_that_is_none_is_refused(signature: Any) -> None:
    """It has to be a `FuncType` of names."""
    async with quiet_cache() as cache:
        with pytest.raises(TypeError, match=r"f\(\): the signature of a binding must be a Func"):
            await cache.register("f", module("i64"), args=(), export="run", abi=Own(signature))
        assert cache.functions() == ()


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("isolation", ["reuse", "fresh", "reset"])
async def test_an_export_that_cannot_cross_cannot_be_invoked(kind: str, isolation: str) -> None:
    """The call fails with its name and its type, alone or in a batch, and the next one is fine."""
    async with quiet_cache() as cache:
        for number, export in enumerate(("takes", "gives", "held", "memory", "nothing", "\0")):
            abi = Own(I64, export, (0,) if export == "takes" else ())
            function = await cache.register(
                f"f{number}",
                module(kind),
                args=("i64",),
                returns="i64",
                export="run",
                abi=abi,
                isolation=isolation,
            )
            with pytest.raises(AbiError) as caught:
                await function.call(1)
            assert f"its ABI calls {export!r}" in str(caught.value)
            assert caught.value.function == f"f{number}"
            assert (repr(kind) in str(caught.value)) == (export in ("takes", "gives"))
            async with function.acquire() as lease:
                with pytest.raises(AbiError) as caught:
                    await lease.map([[1, 2]])
                assert caught.value.row == 0
        fine = await cache.register(
            "fine",
            module(kind),
            args=("i64",),
            returns="i64",
            export="run",
            abi="plain",
            isolation=isolation,
        )
        assert await fine.call(5) == 5
        check_invariants(cache)


@pytest.mark.parametrize("kind", HELD)
async def test_an_import_that_cannot_be_given_is_refused_by_its_type(kind: str) -> None:
    """A function is named with what is wrong; globals and tables can't be given at all."""
    async with quiet_cache() as cache:
        for signature in (f"(param {kind})", f"(result {kind})"):
            wasm = wat(f'(module (import "m" "f" (func {signature})) (func (export "run")))')
            hosts = {"m": {"f": HostFunction(print, ("i64",), ())}}
            for imports in (None, hosts):
                with pytest.raises(LinkError) as caught:
                    await cache.register("run", wasm, args=(), imports=imports)
                check(cache, caught.value, kind)
        wasm = wat(f'(module (import "m" "g" (global {kind})) (func (export "run")))')
        with pytest.raises(LinkError, match=r"m\.g is a global"):
            await cache.register("run", wasm, args=())


@pytest.mark.parametrize("kind", [*NUMBER_TYPES, *HELD])
async def test_an_exported_global_is_a_number_or_none(kind: str) -> None:
    """`Guest.global_value` gives it or says that there is no number of that name."""
    got: list[Any] = []

    class Looks(Own):
        def _steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
            try:
                got.append(guest.global_value("held"))
            except LookupError as error:
                got.append(str(error))
            return (yield Invoke("run", values))

    async with quiet_cache() as cache:
        abi = Looks(I64, "run")
        function = await cache.register(
            "run", module(kind), args=("i64",), returns="i64", abi=abi, isolation="reset"
        )
        assert await function.call(3) == 3
    if kind in NUMBER_TYPES:
        assert got == [0]
    else:
        assert "no global 'held' that is a number" in got[0]


@pytest.mark.parametrize("byte", sorted(set(range(0x40, 0x80)) - set(VALUE_TYPES)))
async def test_a_type_that_is_switched_off_is_refused_where_it_is_read(byte: int) -> None:
    """In a signature, a local, a global or a table of a module, by bytes."""
    kind = bytes([byte])
    header = b"\0asm\1\0\0\0"
    function = b"\1\4\1\x60\0\0\3\2\1\0"
    async with quiet_cache() as cache:
        for wasm in (
            header + b"\1\5\1\x60\1" + kind + b"\0",
            header + b"\1\5\1\x60\0\1" + kind,
            header + b"\6\5\1" + kind + b"\0\xd0" + kind,
            header + b"\4\4\1" + kind + b"\0\0",
            header + function + b"\x0a\6\1\4\1\1" + kind + b"\x0b",
        ):
            with pytest.raises(InvalidModuleError):
                await cache.register("f", wasm, args=())
            assert cache.functions() == ()
