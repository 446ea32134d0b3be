"""Types of generated components, as the library reads them and lays them out."""

from __future__ import annotations

from components.echo import INTERFACE, echo, result_of
from components.face import shape_of
from components.shapes import Shape, layout, parameters
from hypothesis import HealthCheck, given, strategies as st
from kits import tries

from trio_wasmcache._core.wasm.component.reader import read_component
from trio_wasmcache._core.wasm.component.types import Lifted
from trio_wasmcache._core.wit import layout as theirs
from trio_wasmcache._core.wit.types import Function


@tries(40, suppress_health_check=[HealthCheck.too_slow])
@given(params=parameters(), interface=st.booleans())
def test_types_are_read_and_laid_out(params: tuple[Shape, ...], interface: bool) -> None:
    """As the generator, which is written from the specification, has them."""
    (function,) = read_component(echo(params, interface=interface)).exports
    assert function.export == (f"{INTERFACE}#echo" if interface else "echo")
    assert isinstance(function.function, Lifted)
    assert isinstance(function.type, Function)
    result = function.type.result
    assert result is not None
    given = [one for _, one in function.type.params]
    assert tuple(map(shape_of, given)) == params
    assert shape_of(result) == result_of(params)
    for one, shape in zip((*given, result), (*params, result_of(params)), strict=True):
        made, expected = theirs.layout(one), layout(shape)
        assert (made.size, made.align, made.flat) == (expected.size, expected.align, expected.flat)
