"""`log_values`: which calls are logged, with what values, and what it costs to have it off."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from kits import FakeKit, ListLogger, add, open_real_cache
from peeking import bound_of, small_of

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    MemoryLimitError,
    Prepare,
    TrapError,
    Wasi,
    current_lease,
)
from trio_wasmcache._core.answers import MAX_CALL
from trio_wasmcache._core.output import GROUP_VALUES
from trio_wasmcache._core.tagged import decode
from trio_wasmcache._runtime.call import Call
from trio_wasmcache._runtime.module import CachedModule
from trio_wasmcache._runtime.recording import RecordedHost, Texts
from trio_wasmcache.testing import open_fake_cache

# Divides by its argument, and counts its calls in memory.
DIVIDE = """(module (memory (export "memory") 1)
  (func (export "divide") (param i64) (result i64)
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
    (i64.div_s (i64.const 100) (local.get 0))))"""
# Asks the host, writes down what it gets, and traps if its argument is 0.
ASK = """(module
  (import "env" "ask" (func $ask (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "note") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))
  (func (export "run") (param i64) (result i64)
    (drop (call $ask (i32.wrap_i64 (local.get 0))))
    (i64.div_s (i64.extend_i32_u (i32.load (i32.const 16))) (local.get 0))))"""
I64: dict[str, Any] = {"args": ("i64",), "returns": "i64"}
LOGGING = CacheConfig(log_values=0.0, log_uses=True)


@asynccontextmanager
async def logging(
    log: ListLogger, part: float = 0.0, **limits: Any
) -> AsyncIterator[InstanceCache]:
    async with open_real_cache(CacheConfig(log_values=part, **limits), logger=log) as cache:
        yield cache


def calls(log: ListLogger) -> list[dict[str, Any]]:
    return log.fields("replayable")


async def fails(call: Callable[[], Any], kind: type[Exception] = TrapError) -> None:
    with pytest.raises(kind):
        await call()


async def test_off_there_is_nothing_of_it(fake: FakeKit, log: ListLogger) -> None:
    """No host function is wrapped, no call is of another class, small batches stay small."""
    async with open_real_cache(logger=log) as cache:
        host = HostFunction(lambda x: x, ("i32",), ("i32",))
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        divide = await cache.register("divide", DIVIDE, **I64)
        pool = cache._pool
        assert pool.call_type is Call
        assert pool.runtime.recorder is None
        async with f.acquire() as lease:
            bound = bound_of(lease)
            assert not bound.recorded
            assert bound.definition.setup is None
            assert not any(isinstance(one, RecordedHost) for one in bound.definition.module.hosts)
            memory = lease._guest_memory()
            assert memory is bound.native.memory
        async with divide.acquire() as lease:
            for _ in range(2):
                await lease.map([[1, 2]])
            assert small_of(lease) is not None
        await fails(lambda: divide.call(0))
    assert calls(log) == []


async def test_a_failed_call_with_all_its_fields(log: ListLogger) -> None:
    """Others are not logged."""
    async with open_real_cache(LOGGING, logger=log) as cache:
        divide = await cache.register("divide", DIVIDE, **I64)
        assert await divide.call(7) == 14
        await fails(lambda: divide.call(0))
    (event,) = calls(log)
    for name in ("cache", "label", "seq", "at_seconds", "schema", "versions"):
        del event[name]
    assert event == {
        "function": "divide",
        "arg_types": "i64",
        "group": "main",
        "generation": 1,
        "instance": 1,
        "request": 2,
        "row": None,
        "pristine": False,
        "error": "TrapError",
        "trap": "integer divide by zero",
        "trap_offset": event["trap_offset"],
        "fuel": event["fuel"],
        "arguments": '{"tuple":[{"int":"0"}]}',
        "result": None,
        "host_calls": "[]",
        "start_calls": "[]",
        "setup": '{"dict":[[{"str":"abi"},{"str":"recognised"}]]}',
        "cut": None,
        "redacted": False,
        "returns": "i64",
        "export": "divide",
        "module_digest": divide.module_digest,
        "isolation": "reuse",
        "compiler": event["compiler"],
        "total_fuel": 1_000_000_000,
        "stack_size_bytes": LOGGING.instance_stack_size,
        "memory_limit_bytes": 32 * 2**20,
        "table_limit_elements": 10_000,
        "max_result_size_bytes": 256 * 2**20,
        "dropped": 0,
    }
    assert event["trap_offset"] > 0
    assert event["fuel"] in (0, 1)  # it is counted at the ends of blocks, or at each instruction


@pytest.mark.parametrize(("part", "few", "many"), [(1.0, 400, 400), (0.25, 98, 102), (0.0, 0, 0)])
async def test_a_part_of_the_calls(
    fake: FakeKit, log: ListLogger, part: float, few: int, many: int
) -> None:
    """Of functions that are called in turn, the same part each."""
    config = CacheConfig(log_values=part, offload_after=None)
    async with open_fake_cache(config, engine=fake.engine, logger=log) as cache:
        functions = [await add(cache, f"f{number}", fake.adding(number)) for number in range(4)]
        for _ in range(100):
            for function in functions:
                await function.call(1)
    assert few <= len(calls(log)) <= many
    for number in range(4):
        mine = [one for one in calls(log) if one["function"] == f"f{number}"]
        assert few // 4 - 3 <= len(mine) <= many // 4 + 3
        assert all(one["result"] == f'{{"int":"{number + 1}"}}' for one in mine)


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_which_calls_are_pristine(log: ListLogger, isolation: Any) -> None:
    """The first of an instance; after a reset, the first again; and not after a write."""
    async with logging(log, 1.0) as cache:
        f = await cache.register("divide", DIVIDE, isolation=isolation, **I64)
        await f.call(1)
        await f.call(2)
        async with f.acquire() as lease:
            await lease.call(3)
            await lease.call(4)
        await fails(lambda: f.call(0))
        async with f.acquire() as lease:
            assert lease.memory.read(0, 1) == b"\0"
            await lease.call(5)
        async with f.acquire() as lease:
            lease.memory.write(0, b"\0")
            await lease.call(6)
        async with f.acquire() as lease:
            lease.memory.grow(1)
            await lease.call(7)
    values = [decode(one["arguments"])[0] for one in calls(log)]  # type: ignore[index]
    assert values == [1, 2, 3, 4, 0, 5, 6, 7]
    anew = isolation != "reuse"
    expected = [True, anew, anew, False, anew, True, False, False]
    assert [one["pristine"] for one in calls(log)] == expected


async def test_batches_make_their_instance_used(log: ListLogger) -> None:
    """Also small ones, which need no call of their own otherwise."""
    async with logging(log) as cache:
        f = await cache.register("divide", DIVIDE, **I64)
        for _ in range(3):
            async with f.acquire() as lease:
                await lease.map([[1, 2]])
        await fails(lambda: f.call(0))
        async with f.acquire() as lease:
            assert lease.lend() is None
    assert [one["pristine"] for one in calls(log)] == [False]


async def test_rows_that_fail(log: ListLogger) -> None:
    """Each with its values, of the first ones of an error; the row behind is pristine again."""
    async with logging(log) as cache:
        f = await cache.register("divide", DIVIDE, **I64)
        async with f.acquire() as lease:
            await lease.map([[0, 0, 1, 0, *[0] * 30]], on_error="null")
        async with f.acquire() as lease:
            with pytest.raises(TrapError):
                await lease.map([[5, 0, 5]])
    rows = [(one["row"], one["pristine"], one["fuel"]) for one in calls(log)]
    assert rows[:3] == [(0, True, None), (1, True, None), (3, False, None)]
    assert rows[-1] == (1, False, None)
    assert len(rows) == 16 + 1  # as many as have all facts
    assert {one["arguments"] for one in calls(log)} == {'{"tuple":[{"int":"0"}]}'}


async def test_rows_in_which_a_host_function_fails(log: ListLogger) -> None:
    """Their arguments are not known; the row, the error and the answers are."""

    def ask(value: int) -> int:
        if value == 3:
            raise ValueError("no")
        return value

    host = HostFunction(ask, ("i32",), ("i32",))
    async with logging(log) as cache:
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        async with f.acquire() as lease:
            with pytest.raises(ValueError, match="no"):
                await lease.map([[1, 3, 5]])
    (event,) = calls(log)
    assert (event["row"], event["error"]) == (1, "ValueError")
    assert (event["arguments"], event["cut"]) == (None, "arguments")
    assert json.loads(event["host_calls"])[0][2][:2] == ["raise", "ValueError"]


async def test_the_answers_of_a_host_function(log: ListLogger) -> None:
    """What it wrote, had the guest call, tried to add, and returned, in order."""

    async def ask(value: int) -> int:
        lease = current_lease()
        lease.memory.write(16, b"\x05\0")
        assert await lease.invoke("note", 21) == 42
        lease.memory.write(18, bytearray(b"\0\0"))
        with pytest.raises(MemoryLimitError):
            lease.memory.grow(10_000)
        with pytest.raises(LookupError):
            await lease.invoke("nothing")
        return value + 1

    host = HostFunction(ask, ("i32",), ("i32",), reentrant=True)
    async with logging(log) as cache:
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        await fails(lambda: f.call(0))
    (event,) = calls(log)
    assert json.loads(event["host_calls"]) == [
        [
            0,
            [
                *(["write", 16, "BQA="], ["invoke", "note", [21]], ["write", 18, "AAA="]),
                *(["grow", 10_000], ["fuel", 4000]),
            ],
            ["return", [1]],
        ]
    ]
    assert '"ask"' in event["setup"]


async def test_errors_of_host_functions(log: ListLogger) -> None:
    """Their types, and no word of their messages, which may be anybody's secrets."""

    def ask(value: int) -> int:
        raise ValueError("a secret") if value else TrapError("a secret", code="host says")

    host = HostFunction(ask, ("i32",), ("i32",))
    async with logging(log) as cache:
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        await fails(lambda: f.call(1), ValueError)
        await fails(lambda: f.call(0))
    first, second = calls(log)
    assert json.loads(first["host_calls"])[0][2] == ["raise", "ValueError", None]
    assert json.loads(second["host_calls"])[0][2] == ["raise", "TrapError", "host says"]
    assert (first["error"], second["trap"]) == ("ValueError", "host says")
    assert "secret" not in json.dumps([first, second])


START = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_initialize") (drop (call $random (i32.const 0) (i32.const 4))))
  (func (export "run") (param i64) (result i64)
    (i64.div_s (i64.extend_i32_u (i32.load (i32.const 0))) (local.get 0))))"""


@pytest.mark.parametrize("isolation", ["reuse", "reset"])
async def test_the_answers_of_a_start_are_kept_with_the_instance(
    log: ListLogger, isolation: Any
) -> None:
    """A reset does not undo them."""
    async with logging(log, 1.0) as cache:
        wasi = Wasi(random=7, clock=5)
        f = await cache.register("run", START, isolation=isolation, wasi=wasi, **I64)
        await f.call(1)
        await f.call(1)
    for event in calls(log):
        ((host, operations, outcome),) = json.loads(event["start_calls"])
        assert (host, outcome) == (0, ["return", [0]])
        assert [one[0] for one in operations] == ["fuel", "write"]
        setup: Any = decode(event["setup"])
        assert (setup["seed"], setup["clock"]) == (7, 5)
        assert event["host_calls"] == "[]"
    assert len(calls(log)) == 2


TEXT = """(module (memory (export "memory") 3) (global $at (mut i32) (i32.const 1024))
  (func (export "malloc") (param i32) (result i32)
    (global.get $at) (global.set $at (i32.add (global.get $at) (local.get 0))))
  (func (export "free") (param i32))
  (func (export "run") (param i32 i32) (result i64) (unreachable)))"""


async def test_large_values_are_cut(log: ListLogger) -> None:
    """And named; the others are there."""
    async with logging(log) as cache:
        f = await cache.register("run", TEXT, args=("str",), returns="str", abi="buffer")
        await fails(lambda: f.call("a" * 60_000))
        await fails(lambda: f.call("a" * 70_000))
    whole, cut = calls(log)
    assert (whole["cut"], cut["cut"]) == (None, "arguments")
    assert cut["arguments"] is None
    assert cut["setup"] == whole["setup"]
    assert len(json.dumps(cut)) < 2000


async def test_large_answers_are_cut(log: ListLogger) -> None:
    """All of them, as a part would be of no use."""

    def ask(_value: int) -> int:
        current_lease().memory.write(32, bytes(50_000))
        return 0

    async with logging(log) as cache:
        host = HostFunction(ask, ("i32",), ("i32",))
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        await fails(lambda: f.call(0))
    (event,) = calls(log)
    assert (event["cut"], event["host_calls"]) == ("host_calls", None)


async def test_calls_that_somebody_ended_are_not_logged(log: ListLogger) -> None:
    """They did not fail by themselves."""

    async def wait(_value: int) -> int:
        await trio.sleep_forever()
        return 0

    async with logging(log) as cache:
        host = HostFunction(wait, ("i32",), ("i32",))
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(f.call, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert calls(log) == []


async def test_values_that_do_not_fit_are_not_logged(log: ListLogger) -> None:
    """No wasm has run."""
    async with logging(log) as cache:
        f = await cache.register("divide", DIVIDE, **I64)
        await fails(lambda: f.call("x"), TypeError)
        await fails(lambda: f.call(2**70), OverflowError)
        async with f.acquire() as lease:
            await lease.map([["x", 1]], on_error="null")
            assert await lease.call(1) == 100
    assert calls(log) == []


async def test_redact_sees_each_value_first(log: ListLogger) -> None:
    """With the name of the function, and what it is."""
    seen: list[tuple[str, str, object]] = []

    def redact(function: str, what: str, value: object) -> object:
        seen.append((function, what, value))
        return {"argument 0": 77, "env.ask wrote": b"****"}.get(what, value)

    def ask(value: int) -> int:
        current_lease().memory.write(16, b"abcd")
        return value

    async with logging(log, 1.0, redact=redact) as cache:
        host = HostFunction(ask, ("i32",), ("i32",))
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        result = await f.call(5)
    (event,) = calls(log)
    assert seen == [
        ("run", "setup", seen[0][2]),
        ("run", "argument 0", 5),
        ("run", "env.ask wrote", b"abcd"),
        ("run", "env.ask returned", (5,)),
        ("run", "result", result),
    ]
    assert event["redacted"] is True
    assert decode(event["arguments"]) == (77,)
    assert "KioqKg==" in event["host_calls"]
    assert "YWJjZA==" not in json.dumps(event)


def test_redact_gets_copies() -> None:
    """One that masks in place changes the log, and neither an argument nor a result."""

    def mask(_function: str, _what: str, value: Any) -> object:
        value[0][0] = "****"
        return value

    given = [["secret"], "open"]
    texts = Texts(mask, "f")
    texts.add("result", texts.redact("result", given))
    assert given == [["secret"], "open"]
    assert decode(texts.texts["result"] or "") == [["****"], "open"]
    assert texts.redacted
    texts = Texts(lambda _function, _what, value: value, "f")
    assert texts.redact("result", given) == given
    assert not texts.redacted
    texts.add("result", texts.redact("result", [0] * MAX_CALL))
    assert (texts.cut, texts.redacted) == (["result"], False)


class Names(list[str]):
    """A list that lies about its items."""

    def __iter__(self) -> Any:
        return iter(("others",))


class Rows(dict[str, Any]):
    """A dict that lies about its items."""

    def values(self) -> Any:
        return ["others"]


class Broken(UserDict[str, Any]):
    """A mapping that can't be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "make",
    [
        *(OrderedDict, Counter, Rows, UserDict, lambda one: defaultdict(list, one)),
        lambda one: {"inner": OrderedDict(one)},
        lambda one: (UserDict(one), 1),
    ],
)
def test_redact_gets_copies_of_mappings(make: Callable[[Any], Any]) -> None:
    """Of all classes, as dicts, also within other values."""
    given, seen = make({"name": ["secret"]}), []

    def mask(_function: str, _what: str, value: Any) -> object:
        while "name" not in value:
            value = value["inner"] if isinstance(value, dict) else value[0]
        seen.append(dict(value))
        value["name"].append("changed")
        value.clear()
        return "masked"

    texts = Texts(mask, "f")
    assert texts.redact("result", given) == "masked" and texts.redacted
    assert seen == [{"name": ["secret", "changed"]}]
    assert given == make({"name": ["secret"]})


@pytest.mark.parametrize("make", [Names, UserList, deque, type("Bytes", (bytearray,), {})])
def test_redact_gets_copies_of_sequences(make: Callable[[Any], Any]) -> None:
    """Of all classes that can be changed; what it gives back unchanged is logged as it is."""
    given = make([1, 2] if make is not Names else ["a", "b"])

    def mask(_function: str, _what: str, value: Any) -> object:
        assert value is not given and next(iter(value)) in (1, "a", "others")
        value.clear()
        return value

    texts = Texts(mask, "f")
    texts.redact("result", given)
    assert texts.redacted and len(given) == 2
    texts = Texts(lambda _function, _what, value: value, "f")
    assert texts.redact("result", given) is given and not texts.redacted


def test_what_can_not_be_copied_is_left_out() -> None:
    """A mapping that raises is not shown to `redact`, and does not end the call."""
    texts = Texts(lambda *_: pytest.fail("it was shown"), "f")
    texts.add("result", texts.redact("result", Broken({"a": 1})))
    assert texts.cut == ["result"]


@pytest.mark.parametrize("how", ["raises", "awaits", "wrong"])
async def test_a_value_that_redact_fails_on_is_left_out(log: ListLogger, how: str) -> None:
    """Its error does not end the call."""

    async def later() -> object:
        return None

    def redact(_function: str, what: str, value: object) -> object:
        if what in ("argument 0", "env.ask wrote"):
            if how == "raises":
                raise ValueError("no")
            return later() if how == "awaits" else 5
        return value

    def ask(_value: int) -> int:
        current_lease().memory.write(16, b"abcd")
        return 0

    async with logging(log, redact=redact) as cache:
        host = HostFunction(ask, ("i32",), ("i32",))
        f = await cache.register("run", ASK, imports={"env": {"ask": host}}, **I64)
        await fails(lambda: f.call(0))
    (event,) = calls(log)
    names = "host_calls" if how == "wrong" else "arguments, host_calls"
    assert (event["cut"], event["redacted"]) == (names, True)
    assert "abcd" not in json.dumps(event)


async def test_a_group_logs_a_limited_number_of_bytes(
    fake: FakeKit, log: ListLogger, mock_clock: trio.testing.MockClock
) -> None:
    """The next event says how many calls were left out; other groups have limits of their own."""
    shown = []

    def redact(_function: str, _what: str, value: object) -> object:
        shown.append(value)
        return value

    config = CacheConfig(log_values=1.0, offload_after=None, redact=redact)
    async with open_fake_cache(config, engine=fake.engine, logger=log) as cache:
        f = await add(cache, "f", fake.adding(1))
        async with f.acquire() as lease:
            for _ in range(GROUP_VALUES // 1000):
                await lease.call(1)
            few = len(calls(log))
            # Setup, argument and result: the values of the others are not looked at, except those
            # of the call that did not fit beside them.
            assert len(shown) <= 3 * (few + 1)
            assert GROUP_VALUES // 2000 < few < GROUP_VALUES // 1000
            mock_clock.jump(0.5)
            await lease.call(1)
        assert calls(log)[-1]["dropped"] == GROUP_VALUES // 1000 - few
        assert cache.stats().values_dropped == GROUP_VALUES // 1000 - few
        cache.pop_stats()
        assert cache.stats().values_dropped == 0
        async with cache.scheduling_group("other", capacity=1):
            await f.call(1)
    assert (calls(log)[-1]["group"], calls(log)[-1]["dropped"]) == ("other", 0)


async def test_functions_that_were_prepared_say_so(log: ListLogger) -> None:
    """What the calls of `prepare` get of their host is no call's."""
    async with logging(log) as cache:
        f = await cache.register(
            "divide", DIVIDE, prepare=[Prepare("divide", (1,), args=("i64",), returns="i64")], **I64
        )
        await fails(lambda: f.call(0))
    setup: Any = decode(calls(log)[0]["setup"])
    assert setup["prepare"] == 1


async def test_wrapped_hosts_keep_their_modules_apart(log: ListLogger) -> None:
    """Functions share a module as without it."""
    async with logging(log) as cache:
        host = HostFunction(lambda x: x, ("i32",), ("i32",))
        for name in ("a", "b"):
            await cache.register(name, ASK, export="run", imports={"env": {"ask": host}}, **I64)
        records = cache._pool.registry.functions.values()
        (module,) = {CachedModule.of(record.module) for record in records}
        assert [type(one) for one in module.hosts] == [RecordedHost]


async def test_other_errors_of_guests(log: ListLogger) -> None:
    """Fuel, and addresses that are wrong."""
    loops = '(module (func (export "run") (param i64) (result i64) (loop (br 0)) (unreachable)))'
    liar = TEXT.replace("(unreachable)", "(i64.const -1)")
    async with logging(log, total_fuel=100_000) as cache:
        f = await cache.register("run", loops, **I64)
        await fails(lambda: f.call(0), FuelExhaustedError)
        g = await cache.register(
            "lies", liar, args=("str",), returns="str", abi="buffer", export="run"
        )
        await fails(lambda: g.call("a"), AbiError)
    assert [(one["error"], one["fuel"] > 0) for one in calls(log)] == [
        ("FuelExhaustedError", True),
        ("AbiError", True),
    ]
