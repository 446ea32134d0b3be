"""Generated components in the library, beside wasmtime's own calls: values and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from components.echo import echo, result_of
from components.face import to_neutral, to_python
from components.liars import ANSWER_PARAMS, LIAR_PARAMS, LIARS, Liar, answering, lies
from components.oracle import FUEL, Oracle, Refused
from components.shapes import Shape, parameters, same, types, values
from engine.support import quiet_cache
from hypothesis import HealthCheck, given, strategies as st
from kits import nightly, tries

from trio_wasmcache import Function, GuestError, WitError

NIGHTLY = nightly()
VALUES = 25 if NIGHTLY else 3
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
# {what wasmtime says of a refused answer: what the library says}. An address may be misaligned and
# outside of the memory; which one is looked at first differs.
PLACE = ("not inside its", "not a multiple of")
REASONS = {
    "out of bounds": PLACE,
    "not aligned": PLACE,
    "discriminant": ("returned case",),
    "for `char`": ("char",),
    "utf-8": ("not UTF-8",),
}


async def call(function: Function[Any], params: Sequence[Shape], result: Shape, *given: Any) -> Any:
    """What the library gives, as a neutral value."""
    try:
        found = await function.call(*map(to_python, params, given))
    except WitError as error:
        if result[0] != "result":
            raise
        return "err", None if result[2] is None else to_neutral(result[2], error.value)
    if result[0] == "result":
        return "ok", None if result[1] is None else to_neutral(result[1], found)
    return to_neutral(result, found)


@tries(40, suppress_health_check=SLOW)
@given(
    params=parameters(),
    post=st.booleans(),
    interface=st.booleans(),
    modules=st.sampled_from((1, 2)),
    data=st.data(),
)
def test_values_there_and_back(
    params: tuple[Shape, ...], post: bool, interface: bool, modules: int, data: st.DataObject
) -> None:
    """Any values of any types come back as they were, of one core module or of several."""
    result = result_of(params)

    async def main() -> None:
        async with quiet_cache() as cache:
            wasm = echo(params, post=post, interface=interface, modules=modules)
            function = await cache.register("echo", wasm)
            for _ in range(VALUES):
                given = tuple(data.draw(values(of)) for of in params)
                answer = await call(function, params, result, *given)
                expected: Any = given[0] if len(params) == 1 else given
                assert same(answer, expected), f"{params}: {given!r} came back as {answer!r}"

    trio.run(main)


def by_oracle(wasm: bytes, shape: Shape, given: Any) -> tuple[Any, str | None]:
    """What wasmtime gives, and why it refuses that."""
    try:
        return Oracle(wasm).call("answer", ANSWER_PARAMS, shape, *given), None
    except Refused as error:
        return None, error.args[0].splitlines()[-1]


def check_refusal(refused: str | None, error: GuestError, expected: Any) -> None:
    """That wasmtime refuses it for the same reason."""
    assert refused is not None, f"{error}, but {expected!r}"
    for theirs, ours in REASONS.items():
        if theirs in refused:
            assert any(one in str(error) for one in ours), f"{error}, but {refused}"


@tries(40, suppress_health_check=SLOW)
@given(shape=types(), data=st.data())
def test_lies(shape: Shape, data: st.DataObject) -> None:
    """An answer that is not well formed is refused by both, or both take the same from it."""
    wasm = answering(shape)

    async def main() -> None:
        async with quiet_cache() as cache:
            function = await cache.register("answer", wasm, isolation="fresh")
            for _ in range(VALUES):
                given = data.draw(lies(shape, data.draw(values(shape))))
                expected, refused = by_oracle(wasm, shape, given)
                try:
                    answer = await call(function, ANSWER_PARAMS, shape, *given)
                except GuestError as error:
                    check_refusal(refused, error, expected)
                else:
                    assert refused is None, f"{answer!r}, but {refused}"
                    assert same(answer, expected), f"{answer!r}, but {expected!r} of {shape}"

    trio.run(main)


# Where the library ends otherwise than wasmtime, and why.
DIFFERENCES: dict[str, str] = {}


@pytest.mark.parametrize("name", LIARS)
async def test_liars(name: str) -> None:
    """Guests whose allocator or post-return misbehaves end as in wasmtime."""
    liar: Liar = LIARS[name]
    result = ("tuple", *LIAR_PARAMS)
    async with quiet_cache(total_fuel=FUEL) as cache:
        function = await cache.register("echo", liar.wasm())
        if liar.refused is not None and name not in DIFFERENCES:
            with pytest.raises(GuestError):
                await call(function, LIAR_PARAMS, result, *liar.values)
        else:
            answer = await call(function, LIAR_PARAMS, result, *liar.values)
            assert same(answer, liar.answer or liar.values)
