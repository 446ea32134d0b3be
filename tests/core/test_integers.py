"""Signed integers with the bits of unsigned ones."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.integers import signed


@pytest.mark.parametrize("bits", [32, 64])
@given(data=st.data())
def test_the_bits_are_the_same(bits: int, data: st.DataObject) -> None:
    """As `int.from_bytes` reads them; what is signed already stays."""
    number = data.draw(st.integers(0, (1 << bits) - 1))
    raw = number.to_bytes(bits // 8, "little")
    result = signed(number, bits)
    assert result == int.from_bytes(raw, "little", signed=True)
    assert signed(result, bits) == result
