"""The canonical ABI by itself: generated echoes give back what they get."""

from __future__ import annotations

from typing import Any

from abi.canonical import CoreGuest, abi_of, bind, call
from components.echo import BUMP, REALLOC, echo_function, result_of
from components.shapes import Shape, parameters, same, values
from components.wit import to_python
from hypothesis import HealthCheck, given, strategies as st
from kits import tries

from trio_wasmcache import Err, Ok, WitError


def core(params: tuple[Shape, ...], *, post: bool) -> str:
    """The text of a core module with an `echo`."""
    function = echo_function(params, "echo", post=post)
    return f'(module (memory (export "memory") 1) {BUMP} {REALLOC} {function})'


@tries(40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(params=parameters(), post=st.booleans(), data=st.data())
def test_echoes_of_any_types(params: tuple[Shape, ...], post: bool, data: st.DataObject) -> None:
    """What a function gets, it gives back, flat or through memory, and post-return is called."""
    result = result_of(params)
    abi = abi_of(params, result, post=post)
    guest, binding = CoreGuest(core(params, post=post), abi), bind(abi)
    for way in ("direct", "steps", "no adapter"):
        neutral = tuple(data.draw(values(of)) for of in params)
        given_values = tuple(to_python(of, one) for of, one in zip(params, neutral, strict=True))
        expected: Any = given_values[0] if len(params) == 1 else given_values
        try:
            answer = call(binding, guest, *given_values, way=way)
        except WitError as error:
            answer = Err(error.value)
        else:
            if isinstance(result, tuple) and result[0] == "result":
                answer = Ok(answer)
        assert same(answer, expected), f"{params}: {given_values!r} came back as {answer!r}"
    if post:
        assert guest.invoked[-1].export == "cabi_post_echo"
