"""Any Python value against every ABI, on real guests: a result, or an error of the right kind."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from engine.support import quiet_cache, wat
from hostile.guest import Gives
from hostile.liars import buffer, scylla
from hostile.scripts import HONEST, script
from hypothesis import HealthCheck, given, strategies as st
from kits import tries
from peeking import may_call

from trio_wasmcache import GuestError
from trio_wasmcache.testing import check_invariants


class Odd:
    """Claims to be what it is not."""

    def __index__(self) -> int:
        raise ValueError("no index")

    def __float__(self) -> float:
        raise OverflowError("no float")

    def __len__(self) -> int:
        return 2**40

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**66), 2**66),
    st.sampled_from([2**31, -(2**31) - 1, 2**32, 2**63, 2**64 - 1, -1]),
    st.builds(lambda: 10**5000),  # has no repr
    st.floats(),
    st.text(max_size=30),
    st.just("\ud800"),
    st.binary(max_size=60),
    st.binary(max_size=60).map(bytearray),
    st.binary(min_size=8, max_size=8).map(lambda data: memoryview(data)[::2]),
    st.binary(min_size=8, max_size=8).map(lambda data: memoryview(data).cast("i")),
    st.builds(Odd),
    st.builds(object),
    st.complex_numbers(),
    st.dates(),
    st.uuids(),
    st.decimals(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    ),
    max_leaves=8,
)
PLAIN = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64", "bool")
CQL = (
    "text ascii blob varint decimal uuid timeuuid inet date time timestamp duration counter "
    "list<int> set<text> map<text,list<int>> tuple<int,text,blob> list<tuple<double,boolean>>"
).split()
# Of the values that a float of its bits can have.
NEAREST: dict[str, Callable[[Any], Any]] = {
    "f32": lambda value: struct.unpack("f", struct.pack("f", value))[0],
    "f64": float,
}
WIDE = {"f32": "f32", "f64": "f64", "i64": "i64", "u64": "i64"}


def same(kind: str) -> bytes:
    """Gives back a number."""
    wasm = WIDE.get(kind, "i32")
    return wat(f'(module (func (export "run") (param {wasm}) (result {wasm}) (local.get 0)))')


ECHOES: list[tuple[str, str, bytes]] = [
    *(("plain", kind, same(kind)) for kind in PLAIN),
    *(("scylla", kind, scylla("", Gives(None), version=2).wasm()) for kind in CQL),
    *(("scylla", kind, scylla("", Gives(None), version=1).wasm()) for kind in CQL[:4]),
    *(
        (
            "buffer",
            kind,
            buffer(
                "",
                Gives(None),
                "(i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))"
                " (i64.extend_i32_u (local.get 1)))",
            ).wasm(),
        )
        for kind in ("str", "bytes")
    ),
    *(
        ("assemblyscript", kind, script("", Gives(None), "(local.get 0)", new=HONEST).wasm())
        for kind in ("str", "bytes", "array<f64>", "staticarray<f64>", "float64array")
    ),
]


@pytest.mark.parametrize(
    ("abi", "kind", "wasm"), ECHOES, ids=[f"{abi} {kind}" for abi, kind, _ in ECHOES]
)
@tries(6, suppress_health_check=list(HealthCheck))
@given(values=st.lists(VALUES, min_size=12, max_size=12))
def test_any_value(abi: str, kind: str, wasm: bytes, values: Sequence[Any]) -> None:
    """What does not fit raises before the guest runs, and spoils nothing; what fits comes back."""

    refusals: list[str] = []

    async def main() -> None:
        async with quiet_cache(total_fuel=1_000_000) as cache:
            function = await cache.register(
                "run", wasm, args=(kind,), returns=kind, abi=abi, called_on_null=False
            )
            async with function.acquire() as lease:
                for value in values:
                    before = lease.fuel_consumed
                    try:
                        got = await lease.call(value)
                    except (TypeError, ValueError, OverflowError) as error:
                        refusals.append(str(error))
                        assert lease.fuel_consumed in (before, 0)
                        continue
                    except GuestError as error:
                        raise AssertionError(f"{value!r} was let in") from error
                    if value is None:
                        assert got is None
                    elif "array" in kind:
                        assert repr(got) == repr([float(one) for one in value])
                    elif isinstance(value, (int, str, bytes)) and kind != "timestamp":
                        assert got == NEAREST.get(kind, lambda same: same)(value)
                    elif isinstance(value, float) and kind in NEAREST:
                        assert got == NEAREST[kind](value) or (
                            math.isnan(got) and math.isnan(value)
                        )
                assert may_call(lease)
                assert all(len(message) < 1000 for message in refusals)
            check_invariants(cache)

    trio.run(main)
