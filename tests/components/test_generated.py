"""Generated echoes: wasmtime's own component calls give back what they get, for all types."""

from __future__ import annotations

from typing import Any

import pytest
from components.echo import INTERFACE, echo, result_of
from components.liars import ANSWER_PARAMS, LIAR_PARAMS, LIARS, Image, answering, lies
from components.oracle import Oracle, Refused
from components.shapes import Shape, parameters, same, types, values
from hypothesis import HealthCheck, given, settings, strategies as st
from kits import nightly, tries

REASONS = ("out of bounds", "not aligned", "discriminant", "char", "utf-8")
VALUES = 25 if nightly() else 3


@tries(15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    params=parameters(),
    post=st.booleans(),
    interface=st.booleans(),
    modules=st.sampled_from((1, 2)),
    data=st.data(),
)
def test_the_oracle_echoes(
    params: tuple[Shape, ...], post: bool, interface: bool, modules: int, data: st.DataObject
) -> None:
    """So the generator and the oracle agree on layouts, and on how values are passed."""
    oracle = Oracle(echo(params, post=post, interface=interface, modules=modules))
    result = result_of(params)
    path = f"{INTERFACE}#echo" if interface else "echo"
    for _ in range(VALUES):
        given = tuple(data.draw(values(of)) for of in params)
        answer = oracle.call(path, params, result, *given)
        expected: Any = given[0] if len(params) == 1 else given
        assert same(answer, expected), f"{params}: {given!r} came back as {answer!r}"


@tries(15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(shape=types(), data=st.data())
def test_the_oracle_reads_what_is_well_formed(shape: Shape, data: st.DataObject) -> None:
    """So the images of values that are changed to lies are right before."""
    oracle = Oracle(answering(shape))
    for _ in range(VALUES):
        value = data.draw(values(shape))
        image = Image(shape, value)
        answer = oracle.call("answer", ANSWER_PARAMS, shape, bytes(image.data), image.bits)
        assert same(answer, value), f"{shape}: {value!r} was read as {answer!r}"


def test_lies_are_of_many_kinds() -> None:
    """The oracle refuses changed answers for all of its reasons, and takes others."""
    seen: set[str] = set()

    @settings(tries(60), database=None)
    @given(shape=types(), data=st.data())
    def lie(shape: Shape, data: st.DataObject) -> None:
        wasm = answering(shape)
        for _ in range(VALUES):
            image, bits = data.draw(lies(shape, data.draw(values(shape))))
            try:
                Oracle(wasm).call("answer", ANSWER_PARAMS, shape, image, bits)
            except Refused as error:
                seen.update(reason for reason in REASONS if reason in error.args[0])
            else:
                seen.add("taken")

    lie()
    assert seen >= {"taken", "out of bounds", "not aligned", "discriminant"}


@pytest.mark.parametrize("name", LIARS)
def test_the_oracle_on_liars(name: str) -> None:
    """It ends as the table says."""
    liar = LIARS[name]
    oracle = Oracle(liar.wasm())
    if liar.refused is None:
        answer = oracle.call("echo", LIAR_PARAMS, ("tuple", *LIAR_PARAMS), *liar.values)
        assert same(answer, liar.answer or liar.values)
    else:
        with pytest.raises(Refused, match=liar.refused):
            oracle.call("echo", LIAR_PARAMS, ("tuple", *LIAR_PARAMS), *liar.values)
