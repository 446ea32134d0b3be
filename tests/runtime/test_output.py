"""Lines that guests write: events of their own, or calls of a function; bounded, and paid for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import structlog
import trio
from counting import uncollected
from engine.support import Quiet, quiet_cache
from hypothesis import given, strategies as st
from kits import ListLogger, open_real_cache
from runtime.test_last_words import WRITE

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    InstanceCache,
    LoadError,
    Prepare,
    TrapError,
    Wasi,
    current_lease,
    open_cache,
)
from trio_wasmcache._core.output import CALL_LINES, GROUP_LINES, MAX_LINE, escapes
from trio_wasmcache._core.policy.shares import CALL_FUEL
from trio_wasmcache._log import BUFFER_OUTPUTS
from trio_wasmcache.testing import check_invariants

LOG = Wasi(stdout="log", stderr="log")
# Writes what lies in its memory from address 0 on, to a stream, in one go.
PRINTS = f"""(module {WRITE}
  (func (export "print") (param $fd i32) (param $size i32)
    (call $write (local.get $fd) (i32.const 0) (local.get $size)))
  (func (export "often") (param $times i32) (param $size i32)
    (loop
      (call $write (i32.const 1) (i32.const 0) (local.get $size))
      (local.set $times (i32.sub (local.get $times) (i32.const 1)))
      (br_if 0 (local.get $times))))
  (func (export "fails") (param $fd i32) (param $size i32)
    (call $write (local.get $fd) (i32.const 0) (local.get $size)) (unreachable)))"""


async def add(cache: InstanceCache, wasi: Wasi, export: str = "print", **more: Any) -> Any:
    return await cache.register(
        export, PRINTS, args=("i32", "i32"), wasi=wasi, replace=True, **more
    )


async def prints(lease: Any, text: bytes, fd: int = 1) -> None:
    lease.memory.write(0, text)
    await lease.call(fd, len(text))


def lines_of(log: ListLogger) -> list[tuple[str | None, str | None]]:
    return [(fields["stream"], fields["line"]) for fields in log.fields("output")]


async def test_lines_are_events(log: ListLogger) -> None:
    """With function, group, request and stream; what can't be printed is escaped."""
    async with open_real_cache(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, LOG)
        async with cache.scheduling_group("oltp", capacity=1), f.acquire() as lease:
            await prints(lease, b"one\r\ntw\xff\x1b[2Jo\n\nunfinished")
            await prints(lease, "Grüße\n".encode(), 2)
    events = log.fields("output")
    (requested,) = log.fields("requested")
    stamp = {"cache", "seq", "at_seconds", "schema", "label"}
    for event in events:
        assert {name: value for name, value in event.items() if name not in stamp} == {
            "function": "print",
            "arg_types": "i32, i32",
            "group": "oltp",
            "generation": 1,
            "request": requested["request"],
            "stream": event["stream"],
            "line": event["line"],
            "dropped_lines": 0,
            "dropped_bytes": 0,
        }
    assert lines_of(log) == [
        ("stdout", "one"),
        ("stdout", "tw\\xff\\x1b[2Jo"),
        ("stdout", ""),
        ("stdout", "unfinished"),
        ("stderr", "Grüße"),
    ]


async def test_lines_of_a_preparation_are_events_too(log: ListLogger) -> None:
    """Of the function that is registered, which has no generation yet, and of its preparation."""
    async with open_real_cache(CacheConfig(log_uses=True), logger=log) as cache:
        prepare = (Prepare("print", args=("i32", "i32"), values=(1, 3)),)
        async with cache.scheduling_group("oltp", capacity=1):
            await add(cache, LOG, prepare=prepare)
        assert lines_of(log) == [("stdout", "\\x00\\x00\\x00")]
        (event,) = log.fields("output")
        assert (event["function"], event["arg_types"]) == ("print", "i32, i32")
        (asked,) = log.fields("preparation_requested")
        for name, value in {"group": "oltp", "generation": 0, "request": 1}.items():
            assert event[name] == asked[name] == value


async def test_a_call_logs_sixteen_lines(log: ListLogger) -> None:
    """Of 1 KiB each; the rest is one event with their number and bytes."""
    async with open_real_cache(logger=log) as cache:
        async with (await add(cache, LOG)).acquire() as lease:
            await prints(lease, b"x\n" * 20 + b"yy")
            await prints(lease, b"z" * (2 * MAX_LINE + 10) + b"\n")
    first, second = log.fields("output")[:17], log.fields("output")[17:]
    assert [fields["line"] for fields in first] == ["x"] * CALL_LINES + [None]
    assert (first[-1]["stream"], first[-1]["function"]) == (None, "print")
    assert (first[-1]["dropped_lines"], first[-1]["dropped_bytes"]) == (5, 6)
    assert [fields["line"] for fields in second] == ["z" * MAX_LINE, "z" * MAX_LINE, "z" * 10]


async def test_a_group_logs_a_hundred_events_a_second(log: ListLogger) -> None:
    """However many calls it makes; the next event with room says what was dropped."""
    async with open_real_cache(logger=log) as cache:
        f = await add(cache, LOG)
        async with cache.scheduling_group("loud", capacity=1):
            async with f.acquire() as lease:
                began = trio.current_time()
                for _ in range(100):
                    await prints(lease, b"a\n" * 5)
        async with cache.scheduling_group("calm", capacity=1), f.acquire() as lease:
            await prints(lease, b"b\n")
    seconds = log.fields("group_closed")[0]["at_seconds"] - began
    loud = [fields for fields in log.fields("output") if fields["group"] == "loud"]
    assert GROUP_LINES <= len(loud) <= GROUP_LINES * (1 + seconds) + 2
    logged = sum(fields["line"] is not None for fields in loud)
    assert logged + sum(fields["dropped_lines"] for fields in loud) == 500
    assert logged + sum(fields["dropped_bytes"] for fields in loud) == 500
    calm = [fields for fields in log.fields("output") if fields["group"] == "calm"]
    assert [fields["line"] for fields in calm] == ["b"]
    names = [name for _, name, _ in log.lines]
    closed = names.index("wasmcache.group_closed")
    assert max(n for n, (_, _, fields) in enumerate(log.lines) if fields in loud) < closed


async def test_output_displaces_no_other_event() -> None:
    """With a sink that stands still: a thousand events of output wait, and all of the others."""
    let_go, reached = threading.Event(), threading.Event()

    class Stuck(ListLogger):
        def info(self, event: str, **fields: Any) -> None:
            reached.set()
            assert let_go.wait(600)
            super().info(event, **fields)

    log = Stuck()
    async with open_cache(CacheConfig(max_size=0), logger=log) as cache:
        f, groups = await add(cache, LOG), 15
        await trio.to_thread.run_sync(reached.wait)
        for number in range(groups):
            async with cache.scheduling_group(f"g{number}", capacity=1):
                for _ in range(10):
                    async with f.acquire() as lease:
                        await prints(lease, b"a\n" * CALL_LINES)
        assert cache.stats().log_lost == 0
        dropped = cache.stats().output_dropped
        let_go.set()
    assert not log.fields("lost")
    assert len(log.fields("loaded")) == len(log.fields("evicted")) == groups * 10
    outputs = log.fields("output")
    lines = sum(fields["line"] is not None for fields in outputs)
    # One event more for each group: what was dropped is told when it closes.
    assert BUFFER_OUTPUTS - 1 <= len(outputs) <= BUFFER_OUTPUTS + groups
    assert lines + sum(fields["dropped_lines"] for fields in outputs) == groups * 10 * CALL_LINES
    assert lines + dropped == groups * 10 * CALL_LINES
    numbers = [fields["seq"] for _, _, fields in log.lines]
    assert numbers == [*range(1, len(numbers) + 1)]


async def test_a_guest_that_prints_for_ever_pays_with_its_own_fuel(log: ListLogger) -> None:
    """As much as the bytes cost; what it leaves in the log is one call's lines and one event."""
    for wasi, least in (
        (LOG, 32768),
        (Wasi(), 1024),
        (Wasi(stdout=lambda stream, line: None), 32768),
    ):
        async with open_real_cache(CacheConfig(total_fuel=10_000_000), logger=log) as cache:
            f = await add(cache, wasi, "often")
            async with f.acquire() as lease:
                lease.memory.write(0, b"x" * 49 + b"\n" + b"y" * 1000)
                await lease.call(1, 32768)
                one = lease.fuel_consumed
                assert one is not None
                assert one > CALL_FUEL + 100 + least
                with pytest.raises(FuelExhaustedError) as caught:
                    await lease.call(2**31 - 1, 32768)
                assert len(caught.value.output) <= 4 * 2048 + 10
                assert lease.fuel_consumed == 10_000_000
            check_invariants(cache)
    lines = sum(line is not None for _, line in lines_of(log))
    assert lines <= 2 * CALL_LINES
    assert sum(fields["dropped_bytes"] for fields in log.fields("output")) > 100 * 32768


async def test_a_gigabyte_of_newlines_is_counted_at_once(log: ListLogger) -> None:
    """Past the lines of the call, nothing is done for a line: no call of ours for each of them."""
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call"

    async with open_real_cache(logger=log) as cache:
        f = await add(cache, LOG, "often")
        async with f.acquire() as lease:
            lease.memory.write(0, b"\n" * 32768)
            await lease.call(1, 32768)
            with uncollected():
                sys.setprofile(count)
                await lease.call(100, 32768)
                sys.setprofile(None)
    assert calls < 20_000  # 200 for each write of 32,768 lines
    assert log.fields("output")[-1]["dropped_lines"] >= 100 * 32768 - 2 * CALL_LINES


# -- functions


async def test_a_function_gets_each_line_in_the_task_of_the_call(log: ListLogger) -> None:
    """Between two polls, with the lease; charged as a host function; an unfinished line last."""
    got: list[Any] = []
    variable = structlog.contextvars

    def write(stream: str, line: str) -> None:
        got.append((stream, line, current_lease().function.name, variable.get_contextvars()))
        assert trio.lowlevel.current_task() is task

    async with open_real_cache(logger=log) as cache:
        f = await add(cache, Wasi(stdout=write, stderr="drop"))
        task = trio.lowlevel.current_task()
        with variable.bound_contextvars(user="anna"):
            async with f.acquire() as lease:
                await prints(lease, b"")
                silent = lease.fuel_consumed
                await prints(lease, b"one\ntwo\nrest")
                assert lease.fuel_consumed == (silent or 0) + 2 * CALL_FUEL + 12
                await prints(lease, b"ignored\n", 2)
        anna = {"user": "anna"}
        assert got == [("stdout", line, "print", anna) for line in ("one", "two", "rest")]
        check_invariants(cache)
    assert not log.fields("output")


async def test_a_function_that_raises_costs_lines_only(log: ListLogger) -> None:
    """The call goes on; an event says how many were dropped."""
    asked = []

    def write(stream: str, line: str) -> None:
        asked.append(line)
        if line != "good":
            raise ValueError("the disk is full")

    async with open_real_cache(logger=log) as cache:
        async with (await add(cache, Wasi(stdout=write))).acquire() as lease:
            await prints(lease, b"bad\ngood\nworse\nend")
            assert await lease.call(1, 0) is None
        check_invariants(cache)
    assert asked == ["bad", "good", "worse", "end"]
    (event,) = log.fields("output")
    assert (event["line"], event["dropped_lines"], event["dropped_bytes"]) == (None, 3, 11)


@pytest.mark.parametrize("text", [b"one\ntwo\n", b"unfinished"])
async def test_a_function_must_not_wait(log: ListLogger, text: bytes) -> None:
    """An awaitable is a TypeError of that call; where the call is over, the line is dropped."""

    async def later() -> None:
        raise AssertionError("nobody awaits it")

    async with open_real_cache(logger=log) as cache:
        f = await add(cache, Wasi(stdout=lambda stream, line: later()))
        async with f.acquire() as lease:
            if text.endswith(b"\n"):
                with pytest.raises(TypeError, match="stdout must not return an awaitable"):
                    await prints(lease, text)
            else:
                await prints(lease, text)
                assert log.fields("output")[-1]["dropped_lines"] == 1
        async with f.acquire() as lease:
            assert await lease.call(1, 0) is None
        check_invariants(cache)


class Stop(BaseException):
    """What is no `Exception`, such as the end of the program."""


@pytest.mark.parametrize("text", [b"line\n", b"unfinished"])
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
async def test_what_ends_the_program_passes_through(text: bytes, kind: Any) -> None:
    """Whenever a function raises it, the lease and the books are in order afterwards."""

    def write(stream: str, line: str) -> None:
        raise kind

    async with open_real_cache() as cache:
        f = await add(cache, Wasi(stdout=write))
        async with f.acquire() as lease:
            with pytest.raises(kind):
                await prints(lease, text)
            check_invariants(cache)
            if text == b"unfinished":
                await lease.call(1, 0)  # the call had ended well before
        check_invariants(cache)
        assert cache.stats().running_instances == 0
        async with f.acquire() as lease:
            await lease.call(1, 0)


def _closes_the_group(cache: InstanceCache, group: Any) -> None:
    group.cancel_scope.cancel()


def _removes_the_function(cache: InstanceCache, group: Any) -> None:
    cache.remove("print")


def _lets_nothing_fit(cache: InstanceCache, group: Any) -> None:
    cache.resize(max_size=0)


@pytest.mark.parametrize("act", [_closes_the_group, _removes_the_function, _lets_nothing_fit])
@pytest.mark.parametrize("text", [b"line\n", b"unfinished"])
async def test_a_function_may_use_the_cache(
    act: Callable[[InstanceCache, Any], None], text: bytes
) -> None:
    """It is the application's code, outside of any step of ours."""
    async with open_real_cache() as cache:
        called = False

        def write(stream: str, line: str) -> None:
            nonlocal called
            called = True
            act(cache, group)

        f = await add(cache, Wasi(stdout=write))
        async with cache.scheduling_group("oltp", capacity=1) as group:
            async with f.acquire() as lease:
                await prints(lease, text)
                await trio.lowlevel.checkpoint()
        assert called
        check_invariants(cache)


async def test_many_lines_for_a_function_let_others_run(log: ListLogger) -> None:
    """One write of 32,768 lines is no more than 32,768 calls: between them others have turns."""
    passes = lines = 0

    def write(stream: str, line: str) -> None:
        nonlocal lines
        lines += 1

    async with open_real_cache(logger=log) as cache, trio.open_nursery() as nursery:
        async with (await add(cache, Wasi(stdout=write))).acquire() as lease:

            async def others() -> None:
                nonlocal passes
                while True:
                    passes += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(others)
            await prints(lease, b"\n" * 32768)
        nursery.cancel_scope.cancel()
    assert lines == 32768
    # A burst is half a million units, and each line costs four thousand, or more by the clock.
    assert passes > 20


async def test_rows_of_a_batch_write_their_own_lines(log: ListLogger) -> None:
    """What one leaves unfinished is a line, and is not continued by the next."""
    got: list[str] = []
    async with open_real_cache(logger=log) as cache:
        f = await add(cache, Wasi(stdout=lambda stream, line: got.append(line)))
        async with f.acquire() as lease:
            lease.memory.write(0, b"abc\nde")
            await lease.map([[1, 1, 1], [6, 2, 4]])
    assert got == ["abc", "de", "ab", "abc"]


# -- trials and starts


STARTS = f"""(module {WRITE} (data (i32.const 0) "begun\\n")
  (func $begin (call $write (i32.const 1) (i32.const 0) (i32.const 6)))
  (func (export "f") (call $write (i32.const 1) (i32.const 0) (i32.const 6))) (start $begin))"""


async def test_output_of_trials_is_dropped(log: ListLogger) -> None:
    """`register` tries a start for ``"reset"``; nobody sees it. Each real start is seen."""
    got: list[str] = []
    both = Wasi(stdout=lambda stream, line: got.append(line)), Wasi(stdout="log")
    async with open_real_cache(logger=log) as cache:
        for wasi in both:
            f = await cache.register(
                "f", STARTS, args=(), isolation="reset", wasi=wasi, replace=True
            )
            assert f.isolation_verdict.startswith("reset: ")
            assert not got
            assert not log.fields("output")
            for _ in range(3):
                await f.call()
            assert got or lines_of(log)
            wanted = ["begun"] * 4  # one start, three calls
            assert (got or [line for _, line in lines_of(log)]) == wanted
            got.clear()


async def test_lines_of_a_start_name_the_request(log: ListLogger) -> None:
    """As those of a call do; also if it fails."""
    fails = STARTS.replace("(i32.const 6)))\n", "(i32.const 6)) (unreachable))\n", 1)
    assert fails != STARTS
    async with open_real_cache(CacheConfig(log_uses=True), logger=log) as cache:
        f = await cache.register("f", fails, args=(), wasi=Wasi(stdout="log"))
        with pytest.raises(LoadError, match="begun"):
            await f.call()
    (event,) = log.fields("output")
    (requested,) = log.fields("requested")
    assert (event["line"], event["request"]) == ("begun", requested["request"])


async def test_lines_and_the_error_of_a_failing_call(log: ListLogger) -> None:
    """A stream that is logged, or read by a function, is in the error too."""
    got: list[str] = []
    async with open_real_cache(logger=log) as cache:
        for wasi in (LOG, Wasi(stdout=lambda stream, line: got.append(line))):
            async with (await add(cache, wasi, "fails")).acquire() as lease:
                with pytest.raises(TrapError) as caught:
                    await prints(lease, b"one\ntwo")
                assert caught.value.output == "one\ntwo\n"
    assert lines_of(log) == [("stdout", "one"), ("stdout", "two")]
    assert got == ["one", "two"]


async def test_a_broken_sink_is_not_the_guest_s_fault() -> None:
    """An error of the logger is counted, as for any event."""

    class Broken(Quiet):
        def info(self, *args: Any, **fields: Any) -> None:
            raise OSError("the disk is full")

    async with open_cache(logger=Broken()) as cache:
        async with (await add(cache, LOG)).acquire() as lease:
            await prints(lease, b"one\n")


@pytest.mark.parametrize("stdout", ["log", lambda stream, line: None])
async def test_bytes_that_have_to_be_escaped_cost_the_guest_more(stdout: Any) -> None:
    """300 units each, as that takes 300 ns; text in any language costs what ASCII does."""
    async with quiet_cache(total_fuel=10_000_000) as cache:
        f = await add(cache, Wasi(stdout=stdout), "print")
        burnt = {}
        async with f.acquire() as lease:
            for text in (b"a" * 1000, "ß".encode() * 500, b"\x1b" * 1000, b"\xff" * 1000):
                await prints(lease, text)
                burnt[text[:1]] = lease.fuel_consumed
        plain = burnt[b"a"]
        assert burnt == {b"a": plain, b"\xc3": plain, b"\x1b": plain, b"\xff": plain + 300_000}


@given(st.binary(max_size=40))
def test_escapes_are_counted_as_they_are_made(data: bytes) -> None:
    """One for each byte that decoding escapes."""
    plain = data.replace(b"\\", b"/")
    assert escapes(plain) == plain.decode("utf-8", "backslashreplace").count("\\")
