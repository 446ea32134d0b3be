"""``again``: a logged call ends as it did, or is refused by name; and a log can do no harm."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, frozen
from components.samples import ASKING, PURE, SPEAKING
from components.test_imports import STORE, relay
from hostile import calls as endings, hosts, speakers
from hostile.guest import CONFIG, Fails
from kits import ListLogger, open_real_cache

from trio_wasmcache import (
    BufferAbi,
    CacheConfig,
    Case,
    Err,
    FuelExhaustedError,
    HostFunction,
    HostGlobal,
    HostMemory,
    InstanceCache,
    Ok,
    Prepare,
    Some,
    Wasi,
    WitError,
    current_lease,
)
from trio_wasmcache.__main__ import main
from trio_wasmcache._core.wit.types import STRING, U8, List, Option, Result, Tuple

I64: dict[str, Any] = {"args": ("i64",), "returns": "i64"}
# All that is not the same each time: random bytes at its start and in its call, a clock, and what
# the application says. It writes each down, and divides by its argument.
MOODY = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "env" "ask" (func $ask (param i64) (result i64)))
  (import "env" "base" (global $base i32))
  (memory (export "memory") 1)
  (func (export "twice") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 2)))
  (func (export "_initialize") (drop (call $random (i32.const 0) (i32.const 8))))
  (func (export "run") (param i64) (result i64) (local $sum i64)
    (drop (call $random (i32.const 8) (i32.const 8)))
    (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 16)))
    (local.set $sum (i64.add (i64.load (i32.const 0)) (i64.load (i32.const 8))))
    (local.set $sum (i64.add (local.get $sum) (i64.load (i32.const 16))))
    (local.set $sum (i64.add (local.get $sum) (call $ask (i64.load (global.get $base)))))
    (local.set $sum (i64.add (local.get $sum) (i64.load (i32.const 24))))
    (loop (br_if 0 (i64.gt_s (local.tee $sum (i64.shr_s (local.get $sum) (i64.const 1)))
      (i64.const 1))))
    (i64.div_s (i64.const 7) (local.get 0))))"""
IMPORTS: dict[str, Any] = {"env": {"base": HostGlobal("i32", 8)}}


async def ask(value: int) -> int:
    """Answers by what it reads, writes, and has the guest call."""
    lease = current_lease()
    lease.memory.write(24, value.to_bytes(8, "little", signed=True))
    await trio.lowlevel.checkpoint()
    return 3 + int(await lease.invoke("twice", 21))


IMPORTS["env"]["ask"] = HostFunction(ask, ("i64",), ("i64",), reentrant=True)


def logged(
    path: Path, use: Callable[[InstanceCache], Awaitable[None]], **limits: Any
) -> list[dict[str, Any]]:
    """Write the log of a use of a cache, which logs its calls; return those."""
    log = ListLogger()
    trio.run(_use, log, use, limits)
    write(path, log.lines)
    return log.fields("replayable")


async def _use(
    log: ListLogger, use: Callable[[InstanceCache], Awaitable[None]], limits: dict[str, Any]
) -> None:
    config = evolve(CacheConfig(log_values=1.0, log_uses=True), **limits)
    async with open_real_cache(config, logger=log) as cache:
        await use(cache)


def write(path: Path, lines: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    made = [json.dumps({"event": event, "level": level, **more}) for level, event, more in lines]
    path.write_text("\n".join(made) + "\n")


def changed(path: Path, **fields: Any) -> None:
    """Change fields of all calls in a log."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "wasmcache.replayable":
            line.update(fields)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "wasmcache.jsonl"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "moody.wat"
    path.write_text(MOODY)
    return path


async def moody(cache: InstanceCache) -> None:
    """Three calls of one instance: two with a result, and one that fails."""
    f = await cache.register("moody", MOODY, export="run", imports=IMPORTS, **I64)
    await f.call(2)
    await f.call(7)
    with pytest.raises(Exception, match="divide by zero"):
        await f.call(0)


@functools.cache
def _moody() -> tuple[tuple[str, str, dict[str, Any]], ...]:
    log = ListLogger()
    trio.run(_use, log, moody, {})
    return tuple(log.lines)


def log_moody(path: Path) -> list[dict[str, Any]]:
    """Write the log of `moody`; return its calls."""
    write(path, _moody())
    return [fields for _, event, fields in _moody() if event == "wasmcache.replayable"]


def again(*arguments: object) -> int:
    return main(["again", *map(str, arguments)])


Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["calls"]
    return found


def test_calls_end_as_they_did(log: Path, module: Path, capsys: Capture) -> None:
    """With random bytes, clocks and answers of the application as then; nothing of it runs."""
    events = log_moody(log)
    assert again(log, "--module", module, "--json") == 0
    ran = answer(capsys)
    assert [one["verdict"] for one in ran] == ["same"] * 3
    assert [one["now"] for one in ran] == [one["log"] for one in ran]
    assert [one["pristine"] for one in ran] == [True, False, False]
    assert ran[2]["now"]["trap"] == "integer divide by zero"
    assert [one["now"]["fuel"] for one in ran] == [one["fuel"] for one in events]
    assert [bool(one["remarks"]) for one in ran] == [False, True, True]
    # What the guest does depends on them.
    assert len({one["host_calls"] for one in events}) == 3


def test_which_calls(log: Path, module: Path, capsys: Capture) -> None:
    """By request, event, or cache; without an option, all of them."""
    events = log_moody(log)
    for options, found in (
        (("--request", 2), [1]),
        (("--request", 9), []),
        (("--seq", events[2]["seq"]), [2]),
        (("--cache", events[0]["cache"]), [0, 1, 2]),
        (("--cache", "other"), []),
        (("--row", 0), []),
    ):
        status = again(log, "--module", module, "--json", *options)
        assert status == (0 if found else 2)
        out = capsys.readouterr()
        if found:
            ran = json.loads(out.out)["calls"]
            assert json.loads(out.out)["verdicts"] == {"same": len(found)}
            assert [one["seq"] for one in ran] == [events[number]["seq"] for number in found]
        else:
            what = f"none with {options[0].removeprefix('--')} {options[1]}. CacheConfig(log_v"
            assert f"no such call in the log: it has 3 other calls, {what}" in out.err


def test_why_there_is_no_call(log: Path, module: Path, capsys: Capture) -> None:
    """The log has none, or none of a request, or others."""
    events = log_moody(log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["event"] == "wasmcache.replayable":
            line["request"] = None
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert again(log, "--module", module, "--request", 2) == 2
    assert "They have no requests, as the log was written without log_uses" in (
        capsys.readouterr().err
    )
    log.write_text(
        "".join(
            f"{json.dumps(line)}\n"
            for line in lines
            if line["seq"] not in {one["seq"] for one in events}
        )
    )
    assert again(log, "--module", module, "--request", 2) == 2
    assert "no call to run again is in the log: they are logged with CacheConfig(log_values=" in (
        capsys.readouterr().err
    )


def test_how_many_are_the_same(log: Path, module: Path, capsys: Capture) -> None:
    """In the last line, if there are several calls."""
    log_moody(log)
    assert again(log, "--module", module) == 0
    assert capsys.readouterr().out.endswith("\n3 calls: 3 same\n")
    text = log.read_text().replace('"trap": "integer divide by zero"', '"trap": "unreachable"', 1)
    log.write_text(text)
    assert again(log, "--module", module) == 1
    assert capsys.readouterr().out.endswith("\n3 calls: 2 same, 1 different\n")


def test_logs_that_rotate(tmp_path: Path, module: Path, capsys: Capture) -> None:
    """Several files, packed, in any order, and with a line twice."""
    log_moody(tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(lines[8:]))
    with gzip.open(tmp_path / "log.1.gz", "wt") as file:
        file.write("".join(lines[:10]))
    assert again(tmp_path / "log", tmp_path / "log.1.gz", "--module", module) == 0
    assert capsys.readouterr().out.count(": same\n") == 3


def test_what_is_said(log: Path, module: Path, capsys: Capture) -> None:
    """In words, on a terminal."""
    events = log_moody(log)
    again(log, "--module", module, "--request", 3)
    assert capsys.readouterr().out == (
        f"moody(i64) (request 3, event {events[2]['seq']}): same\n"
        "  it ends by TrapError (integer divide by zero), after "
        f"{events[2]['fuel']:,} units of fuel\n"
        "  note: it was not the first call in its instance: what earlier calls left there may "
        "matter\n"
    )


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"fuel": 5}, "fuel: 5 in the log, "),
        ({"trap": "unreachable"}, "trap: unreachable in the log, integer divide by zero now"),
        ({"error": "AbiError"}, "it ended by AbiError (integer divide by zero), and now by Trap"),
        ({"error": None}, "it ended with a result, and now by TrapError (integer divide by zero)"),
        ({"error": None}, "note: moody(i64) called with (0) after"),
        ({"arguments": '{"tuple":[]}'}, "note: moody(i64) takes 1 argument"),
        ({"arguments": '{"tuple":[{"int":"1"}]}'}, "and now with a result"),
        ({"host_calls": "[]"}, "it called wasi_snapshot_preview1.random_get, which it did not"),
        ({"start_calls": "[]"}, "it called wasi_snapshot_preview1.random_get, which it did not"),
        ({"host_calls": '[[1,[],["return",[0]]]]'}, "where it called another function in the log"),
    ],
    ids=str,
)
def test_what_is_different(
    log: Path, module: Path, capsys: Capture, fields: dict[str, Any], difference: str
) -> None:
    """The exit status is 1, and each difference is named."""
    log_moody(log)
    changed(log, **fields)
    assert again(log, "--module", module, "--request", 3) == 1
    out = capsys.readouterr().out
    assert ": different\n" in out
    assert difference in out


def test_a_host_that_was_asked_less(log: Path, module: Path, capsys: Capture) -> None:
    """Answers that are left over are a difference."""
    events = log_moody(log)
    answers = json.loads(events[2]["host_calls"])
    changed(log, host_calls=json.dumps([*answers, answers[-1]]))
    assert again(log, "--module", module, "--request", 3) == 1
    assert "it called its host 1 time less than in the log" in capsys.readouterr().out


def test_a_result_that_is_different(log: Path, module: Path, capsys: Capture) -> None:
    """Both are shown."""
    log_moody(log)
    changed(log, result='{"int":"9"}')
    assert again(log, "--module", module, "--request", 2) == 1
    assert 'result: {"int":"9"} in the log, {"int":"1"} now' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"arguments": None},
            "the log lacks arguments, which is cut: its values have over 65,536 char",
        ),
        (
            {"arguments": None, "redacted": True},
            "is cut: redact has withheld values, or its values",
        ),
        ({"arguments": None, "row": 0}, "is cut: a batch does not keep the arguments of a row in"),
        ({"start_calls": None}, "is cut: the answers to its start have over 8,192 characters"),
        ({"host_calls": None, "setup": None}, "the log lacks host_calls, setup, which are cut"),
        ({"module_digest": "ab" * 32}, f"the module with SHA-256 {'ab' * 32}, and --module gives"),
        ({"arguments": '{"tuple":[{"unknown":"app.Money"}]}'}, "a value of type app.Money"),
        ({"arguments": '{"int":"1"}'}, "its arguments can't be made again: no tuple"),
        ({"arguments": "{"}, "its arguments can't be made again: no JSON"),
        ({"host_calls": "{}x"}, "host_calls can't be read: no JSON"),
        (
            {"host_calls": '[[0,[["write",-1,""]],null]]'},
            "host_calls can't be read: no answers of the host: a neg",
        ),
        ({"setup": '{"dict":[[{"str":"abi"},{"str":"own"}]]}'}, "an abi of the application's own"),
        ({"setup": '{"dict":[[{"str":"abi"},{"str":"x"}]]}'}, "it has the abi 'x', which is not"),
        ({"setup": '{"dict":[[{"str":"prepare"},{"int":"1"}]]}'}, "registered with prepare="),
        ({"setup": '{"dict":[]}'}, "it can't be registered again"),
        ({"setup": '{"dict":[[{"str":"imports"},{"int":"1"}]]}'}, "register make no sense"),
        ({"total_fuel": 0}, "its limits can't be those of a cache"),
        ({"compiler": "other"}, "its limits can't be those of a cache"),
        ({"export": "walk"}, "it can't be registered again"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(
    log: Path, module: Path, capsys: Capture, fields: dict[str, Any], reason: str
) -> None:
    """The exit status is 2, and the message says why."""
    log_moody(log)
    changed(log, **fields)
    assert again(log, "--module", module, "--request", 1) == 2
    out = capsys.readouterr().out
    assert ": not run\n" in out
    assert reason in out


def test_files_that_can_not_be_read(log: Path, module: Path, capsys: Capture) -> None:
    """The module, or the log."""
    assert again(log, "--module", module) == 2
    assert "no call to run again" in capsys.readouterr().err.replace("\n", " ")
    log_moody(log)
    assert again(log, "--module", module.parent / "none") == 2
    assert "can't be read: No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        again(log)


TEXT = """(module (memory (export "memory") 3) (global $at (mut i32) (i32.const 1024))
  (func (export "malloc") (param i32) (result i32)
    (global.get $at) (global.set $at (i32.add (global.get $at) (local.get 0))))
  (func (export "free") (param i32))
  (func (export "run") (param i32 i32) (result i64)
    (if (i32.eq (i32.load8_u (local.get 0)) (i32.const 33)) (then (unreachable)))
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))"""
HOSTILE = "!\x1b[2J\r\n\u202e\ud800</script>\x7f\0'\""


def test_hostile_texts_reach_nobody(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """Values, names and messages: not the log, not the terminal, not the JSON."""
    (tmp_path / "text.wat").write_text(TEXT)

    async def use(cache: InstanceCache) -> None:
        types: dict[str, Any] = {"args": ("str",), "returns": "str", "abi": "buffer"}
        f = await cache.register("run", TEXT, **types)
        with pytest.raises(Exception, match="unreachable"):
            await f.call(HOSTILE.replace("\ud800", ""))
        await f.call(HOSTILE[1:].replace("\ud800", ""))

    logged(log, use)
    assert all(line.isprintable() for line in log.read_text().splitlines())
    assert again(log, "--module", tmp_path / "text.wat") == 0
    changed(log, function=HOSTILE, error=HOSTILE, trap=HOSTILE, result=HOSTILE, export=HOSTILE)
    for fields in ({}, {"export": "run"}, {"versions": HOSTILE, "arguments": HOSTILE}):
        changed(log, **fields)
        for options in ((), ("--json",)):
            capsys.readouterr()
            assert again(log, "--module", tmp_path / "text.wat", *options) in (1, 2)
            shown = capsys.readouterr()
            lines = (shown.out + shown.err).split("\n")
            assert all(line.isprintable() for line in lines)
            assert all(line.isascii() or not options for line in shown.out.split("\n"))


def test_rows(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """A row of a batch is run as a call, of which the log has no fuel."""
    wat = """(module (func (export "f") (param i64) (result i64)
      (i64.div_s (i64.const 7) (local.get 0))))"""
    (tmp_path / "f.wat").write_text(wat)

    async def use(cache: InstanceCache) -> None:
        f = await cache.register("f", wat, **I64)
        async with f.acquire() as lease:
            await lease.map([[0, 1, 0]], on_error="null")

    logged(log, use)
    assert again(log, "--module", tmp_path / "f.wat", "--json") == 0
    ran = answer(capsys)
    assert [(one["row"], one["pristine"]) for one in ran] == [(0, True), (2, False)]
    assert ran[0]["remarks"] == ["it was a row of a batch, of which the log has no fuel"]
    assert again(log, "--module", tmp_path / "f.wat", "--row", 2) == 0


def test_prepared_functions_are_refused(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """The log does not have the calls of `prepare`."""
    wat = '(module (memory 1) (func (export "f") (param i64) (result i64) (local.get 0)))'
    (tmp_path / "f.wat").write_text(wat)

    async def use(cache: InstanceCache) -> None:
        prepare = [Prepare("f", (1,), args=("i64",), returns="i64")]
        await (await cache.register("f", wat, prepare=prepare, **I64)).call(1)

    logged(log, use)
    assert again(log, "--module", tmp_path / "f.wat") == 2
    assert "it was registered with prepare=, whose calls" in capsys.readouterr().out


def test_calls_that_were_profiled(log: Path, module: Path, capsys: Capture) -> None:
    """They are run by the code without a profile, which a note says."""
    logged_compiler = log_moody(log)[0]["compiler"]
    changed(log, compiler=f"{logged_compiler}, profiled")
    assert again(log, "--module", module, "--request", 1) == 0
    assert "note: it was profiled, by other code" in capsys.readouterr().out


def test_options_of_register(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """Imports that are given, missing ones, types, isolation, nulls, ABIs with options, Wasi."""
    wat = """(module (import "env" "memory" (memory 1)) (import "env" "gone" (func $gone))
      (import "env" "g" (global $g (mut i64)))
      (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $sizes (param i32 i32) (result i32)))
      (func (export "f") (param i64) (result i64 i64)
        (drop (call $sizes (i32.const 0) (i32.const 4)))
        (if (i64.eqz (local.get 0)) (then (call $gone)))
        (i64.load (i32.const 0)) (global.get $g))
      (func (export "alloc_it") (param i32) (result i32) (i32.const 1024))
      (func (export "t") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1)))"""
    (tmp_path / "f.wat").write_text(wat)

    async def use(cache: InstanceCache) -> None:
        given: dict[str, Any] = {
            "imports": {"env": {"memory": HostMemory(), "g": HostGlobal("i64", -5)}},
            "missing": "trap",
            "wasi": Wasi(env={"A": "b"}),
        }
        pair = "i64", "i64"
        f = await cache.register("f", wat, args=("i64",), returns=pair, isolation="reset", **given)
        assert (await f.call(1))[1] == -5
        with pytest.raises(Exception, match="nobody provides"):
            await f.call(0)
        abi = BufferAbi(alloc="alloc_it", result="pair", arguments_of="host")
        t = await cache.register("t", wat, args=("str",), returns="str", abi=abi, **given)
        assert await t.call("hello") == "hello"

    logged(log, use)
    assert again(log, "--module", tmp_path / "f.wat", "--json") == 0
    assert [one["verdict"] for one in answer(capsys)] == ["same"] * 3


SAMPLE = [
    guest
    for guests in (endings.GUESTS, hosts.GUESTS, speakers.GUESTS)
    for guest in guests[::6]
    if isinstance(guest.gets, Fails) and guest.at_once == 1 and not guest.rows
]


def test_failed_calls_of_hostile_guests(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """A sample of the 1,000 of the night: those that are not cut have the same trap and fuel."""

    async def use(cache: InstanceCache) -> None:
        for number, guest in enumerate(SAMPLE):
            await guest.attack(cache, f"guest {number}", guest.wasm())

    events = logged(
        log,
        use,
        **{
            name: getattr(CONFIG, name)
            for name in ("total_fuel", "memory_limit", "table_limit", "max_result_size")
        },
        log_values=0.0,
    )
    assert len(events) > 8
    files: list[object] = []
    for number, guest in enumerate(SAMPLE):
        path = tmp_path / f"{number}.wasm"
        path.write_bytes(guest.wasm())
        files += ["--module", path]
    again(log, "--json", *files)
    verdicts = [(one["function"], one["verdict"], one["differences"]) for one in answer(capsys)]
    same = [one for one in verdicts if one[1] == "same"]
    assert len(same) > 0.7 * len(verdicts), verdicts
    assert [one for one in verdicts if one[1] == "different"] == []


@frozen
class Spot:
    """An object with the attributes of a record."""

    x: float
    y: float
    label: str


async def pure(cache: InstanceCache) -> None:
    """Calls with values of all kinds, of which one returns an error, and one burns all fuel."""
    made = await cache.register_component(PURE, prefix="funcs.", isolation="reset")
    funcs = {one.name.removeprefix("funcs."): one for one in made}
    for name, *values in (
        ("add", 2, 3),
        ("upper", "grün"),
        ("total", [1, 2, -6]),
        ("move-by", (1.0, 2.0, "a"), 0.5),
        ("move-by", {"x": 1.0, "y": 2.0, "label": "a"}, 0.5),
        ("move-by", Spot(1.0, 2.0, "a"), 0.5),
        ("area", Case("rectangle", (2.0, 3.5))),
        ("successor", None),
        ("successor", Some(3)),
        ("next-color", "blue"),
        ("other-rights", {"write"}),
        ("backwards", bytearray(b"abc")),
    ):
        await funcs[name].call(*values)
    with pytest.raises(WitError):
        await funcs["divide"].call(7, 0)
    with pytest.raises(FuelExhaustedError):
        await funcs["spin"].call(2**63)
    async with funcs["upper"].acquire() as lease:
        await lease.map([["a", "b"]])


def test_functions_of_components(log: Path, capsys: Capture) -> None:
    """Arguments and results of all of WIT's types, errors of a `result`, and fuel."""
    events = logged(log, pure, total_fuel=100_000)
    assert all("#" in one["export"] for one in events)
    assert events[-2]["result"] == '{"str":"7 can\'t be divided by 0"}'
    assert again(log, "--module", PURE, "--json") == 0
    ran = answer(capsys)
    assert [one["verdict"] for one in ran] == ["same"] * 14
    assert [one["now"] for one in ran] == [one["log"] for one in ran]
    assert ran[-1]["now"]["error"] == "FuelExhaustedError"
    changed(log, result='{"str":"no"}')
    assert again(log, "--module", PURE, "--request", events[-2]["request"]) == 1
    assert 'result: {"str":"no"} in the log, {"str":"7 can\'t' in capsys.readouterr().out


class Moody:
    """A record whose attributes can be asked for once."""

    x, y = 1.0, 2.0

    @property
    def label(self) -> str:
        return self.labels.pop()

    def __init__(self) -> None:
        self.labels = ["a"]


def test_records_that_can_be_read_once(log: Path, capsys: Capture) -> None:
    """The call is as without a log; it is logged, and can't be run again."""

    async def use(cache: InstanceCache) -> None:
        move = await cache.register("move-by", PURE)
        assert await move.call(Moody(), 1.0) == (2.0, 3.0, "a")

    logged(log, use)
    assert again(log, "--module", PURE) == 2
    assert "its arguments can't be made again: a value of type" in capsys.readouterr().out


async def asking(cache: InstanceCache) -> None:
    """Calls of a component that asks its host, which fails in one, and fails its guest in another.

    The same of one with WASI 0.2 behind an adapter, as several core modules.
    """

    async def get(key: str) -> str | None:
        await trio.lowlevel.checkpoint()
        return {"a": "1", "long": "ü" * 600}[key] if key else None

    imports: dict[str, Any] = {STORE: {"get": get}}
    look_up = await cache.register("look-up", ASKING, imports=imports, isolation="reset")
    for key in ("a", "long", ""):
        await look_up.call(key)
    with pytest.raises(KeyError):
        await look_up.call("b")
    wasi = Wasi(env={"HOME": "there"}, random=None)
    speak = await cache.register("speak", SPEAKING, wasi=wasi, isolation="reset")
    assert await speak.call("a line", "HOME") == "there"
    assert await speak.call("a line", "other") is None


def test_components_with_imports(log: Path, capsys: Capture) -> None:
    """The guest gets the same answers, written where it allocates; nothing of the host runs."""
    logged(log, asking)
    assert again(log, "--module", ASKING, "--module", SPEAKING, "--json") == 0
    ran = answer(capsys)
    assert [one["verdict"] for one in ran] == ["same"] * 6
    assert ran[3]["now"]["error"] == "KeyError"
    assert [one["now"] for one in ran] == [one["log"] for one in ran]


RELAYS: list[tuple[Any, Any, Callable[[Any], Any]]] = [
    (Tuple((Result(STRING, U8), Option(Option(U8)))), (Err(3), Some(None)), lambda it: it),
    (List(STRING), [str(number) for number in range(300)], lambda it: it),
    (Result(STRING, U8), Ok("a"), lambda _: Err(9)),
    (STRING, "a", lambda _: 5),
]


def test_any_values_of_imports(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """Texts of a list are allocated many at once; a result that does not fit is a failure."""

    async def use(cache: InstanceCache) -> None:
        for number, (kind, value, fn) in enumerate(RELAYS):
            imports: Any = {"demo:host/it": {"f": fn}}
            wasm = relay(kind, result=kind)
            (tmp_path / f"{number}.wat").write_text(wasm)
            f = await cache.register(f"f{number}", wasm, export="f", imports=imports)
            try:
                await f.call(value)
            except (WitError, TypeError):
                assert number > 1

    events = logged(log, use)
    assert [one["error"] for one in events] == [None, None, "WitError", "TypeError"]
    files = [part for number in range(4) for part in ("--module", tmp_path / f"{number}.wat")]
    assert again(log, "--json", *files) == 0
    assert [one["verdict"] for one in answer(capsys)] == ["same"] * 4


def test_rows_of_components(log: Path, capsys: Capture) -> None:
    """As those of other functions; a row that returns an error has not failed."""

    async def use(cache: InstanceCache) -> None:
        divide = await cache.register("divide", PURE)
        spin = await cache.register("spin", PURE)
        async with divide.acquire() as lease:
            await lease.map([[1, 2], [0, 1]], on_error="null")
        async with spin.acquire() as lease:
            await lease.map([[1, 2**62, 2**63]], on_error="null")

    logged(log, use, total_fuel=100_000, log_values=0.0)
    assert again(log, "--module", PURE, "--json") == 0
    assert [(one["row"], one["verdict"]) for one in answer(capsys)] == [(1, "same"), (2, "same")]


def test_names_of_imports_for_redact(log: Path) -> None:
    """What an imported function returns and what is written for it have its name."""
    seen: list[tuple[str, str, object]] = []

    def redact(function: str, what: str, value: object) -> object:
        seen.append((function, what, value))
        return value

    async def use(cache: InstanceCache) -> None:
        imports: Any = {STORE: {"get": {"a": "secret"}.get}}
        f = await cache.register("look-up", ASKING, imports=imports)
        await f.call("a")
        speak = await cache.register("speak", SPEAKING)
        await speak.call("a line", "HOME")

    logged(log, use, redact=redact)
    wrote = [(what, value) for _, what, value in seen if "wrote" in what]
    assert (f"{STORE}#get wrote", b"secret") in wrote
    assert all(what.startswith((STORE, "wasi:")) for what, _ in wrote)
