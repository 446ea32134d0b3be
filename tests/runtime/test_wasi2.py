"""What each function of WASI preview 2 answers, costs and waits for, as a call by hand sees it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from trio_wasmcache import Err, ExitError, FuelExhaustedError, Ok, TrapError, Wasi
from trio_wasmcache._engine.base import HostCall
from trio_wasmcache._runtime import session
from trio_wasmcache._runtime.session import NOTHING, Grants
from trio_wasmcache._runtime.wasi import PIECE
from trio_wasmcache._runtime.wasi2 import (
    CLOSED,
    FIRST_CLOCK,
    FUNCTIONS,
    MAX_CLOCKS,
    NETWORK,
    READY,
    STDERR,
    STDIN,
    STDOUT,
    drop_handle,
    find_function,
)

SECOND = 10**9
IO, CLI, CLOCKS = "wasi:io", "wasi:cli", "wasi:clocks"
INPUT, OUTPUT = "[method]input-stream.", "[method]output-stream."


class Memory:
    """Has a size."""

    size = 2 * PIECE


class Guest:
    """Calls functions by hand; keeps the pauses, and the fuel that was spent."""

    def __init__(self, *, fuel: int = 10**9, **granted: Any) -> None:
        self.grants = Grants(Wasi(**granted)) if granted else NOTHING
        self.state: dict[str, Any] = {}
        self.fuel = fuel
        self.pauses: list[float] = []

    def host_call(self) -> HostCall:
        def take(fuel: int) -> int:
            taken = min(fuel, self.fuel)
            self.fuel -= taken
            return taken

        memory: Any = Memory()
        return HostCall(0, (), memory, print, take, self.state, grants=self.grants)

    def __call__(self, interface: str, name: str, *values: Any) -> Any:
        function = find_function(f"{interface}@0.2.9", name, self.grants)
        assert function is not None
        found = function.run(self.host_call(), *values)
        while hasattr(found, "send"):
            try:
                self.pauses.append(next(found))
            except StopIteration as end:
                return end.value
        return found

    @property
    def session(self) -> session.Session:
        found = self.state[session.KEY]
        assert isinstance(found, session.Session)
        return found


def test_versions_and_packages() -> None:
    """Of 0.2 all are served by the same functions; those of other packages are not ours."""
    for version in ("", "@0.2.0", "@0.2.12"):
        found = find_function(f"wasi:cli/exit{version}", "exit")
        assert found == FUNCTIONS["wasi:cli/exit", "exit"]
    for interface in ("wasi:cli/exit@0.3.0", "wasi:http/types@0.2.0", "demo:cli/exit", "exit"):
        assert find_function(interface, "exit") is None


def test_strings() -> None:
    """Arguments and variables, as they were granted; bytes that are no UTF-8 are replaced."""
    guest = Guest(args=("prog", "-\udcff"), env={"TZ": "UTC", "EMPTY": ""}, fuel=10_000)
    assert guest(f"{CLI}/environment", "get-arguments") == ["prog", "-\ufffd"]
    assert guest(f"{CLI}/environment", "get-environment") == [("TZ", "UTC"), ("EMPTY", "")]
    assert guest(f"{CLI}/environment", "initial-cwd") is None
    assert guest.fuel < 10_000 - 6 * 100
    with pytest.raises(FuelExhaustedError):
        Guest(args=("prog",), fuel=10)(f"{CLI}/environment", "get-arguments")
    assert Guest()(f"{CLI}/environment", "get-environment") == []


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("exit", Ok(), 0), ("exit", Err(), 1), ("exit-with-code", 7, 7)],
)
def test_exit(name: str, value: Any, status: int) -> None:
    """It ends the call, with the status."""
    with pytest.raises(ExitError, match="the guest called exit") as caught:
        Guest()(f"{CLI}/exit", name, value)
    assert caught.value.status == status


def test_input() -> None:
    """It is read in pieces, and then closed; without any, it is closed at once."""
    data = bytes(range(256)) * 200
    guest = Guest(stdin=data)
    stream = guest(f"{CLI}/stdin", "get-stdin")
    first = guest(f"{IO}/streams", f"{INPUT}read", stream, 3)
    assert first == Ok(data[:3])
    assert guest(f"{IO}/streams", f"{INPUT}blocking-skip", stream, 2) == Ok(2)
    assert guest(f"{IO}/streams", f"{INPUT}read", stream, 0) == Ok(b"")
    assert guest(f"{IO}/streams", f"{INPUT}blocking-read", stream, 2**64 - 1) == Ok(
        data[5 : 5 + PIECE]
    )
    rest = guest(f"{IO}/streams", f"{INPUT}read", stream, 2**64 - 1)
    assert rest == Ok(data[5 + PIECE :])
    for name in ("read", "skip"):
        assert guest(f"{IO}/streams", f"{INPUT}{name}", stream, 1) == CLOSED
    assert Guest()(f"{IO}/streams", f"{INPUT}read", STDIN, 1) == CLOSED
    assert guest(f"{IO}/streams", f"{INPUT}subscribe", stream) == READY


def test_output_is_kept_for_errors() -> None:
    """By default; both streams, by all functions that write."""
    guest = Guest(stdin=b"spliced")
    out, err = guest(f"{CLI}/stdout", "get-stdout"), guest(f"{CLI}/stderr", "get-stderr")
    assert guest(f"{IO}/streams", f"{OUTPUT}check-write", out) == Ok(PIECE)
    assert guest(f"{IO}/streams", f"{OUTPUT}write", out, b"one ") == Ok()
    assert guest(f"{IO}/streams", f"{OUTPUT}blocking-write-and-flush", err, b"two ") == Ok()
    assert guest(f"{IO}/streams", f"{OUTPUT}write", out, b"") == Ok()
    assert guest(f"{IO}/streams", f"{OUTPUT}blocking-flush", out) == Ok()
    assert guest(f"{IO}/streams", f"{OUTPUT}blocking-splice", out, STDIN, 4) == Ok(4)
    assert guest(f"{IO}/streams", f"{OUTPUT}splice", out, STDIN, 9) == Ok(3)
    assert guest(f"{IO}/streams", f"{OUTPUT}splice", out, STDIN, 9) == CLOSED
    assert guest.session.output == "one spliced\ntwo \n"
    assert guest(f"{IO}/streams", f"{OUTPUT}write-zeroes", out, 2) == Ok()
    assert guest(f"{IO}/streams", f"{OUTPUT}subscribe", out) == READY


def test_lines() -> None:
    """A function of the application gets them, and others run in between."""
    seen: list[tuple[str, str]] = []
    caller: Any = type("Caller", (), {"quiet": False, "watch": None, "keep": {}})()
    guest = Guest(stdout=lambda *line: seen.append(line))
    function = find_function(f"{IO}/streams@0.2.0", f"{OUTPUT}write", guest.grants)
    assert function is not None
    call = guest.host_call()
    call.caller = caller
    steps = function.run(call, STDOUT, b"a\nb\nunfinished")
    assert list(steps) == [session.IF_DUE] * 2  # type: ignore[arg-type]
    assert seen == [("stdout", "a"), ("stdout", "b")]


@pytest.mark.parametrize("name", ["write", "blocking-write-and-flush"])
def test_more_than_check_write_says(name: str) -> None:
    """It is a trap."""
    with pytest.raises(TrapError, match=f"wrote {PIECE + 1} bytes at once, more than the {PIECE}"):
        Guest()(f"{IO}/streams", f"{OUTPUT}{name}", STDOUT, bytes(PIECE + 1))
    with pytest.raises(TrapError, match="more than"):
        Guest()(f"{IO}/streams", f"{OUTPUT}write-zeroes", STDOUT, 2**64 - 1)


def test_clocks() -> None:
    """A fixed clock is set ahead; waiting takes no time then."""
    guest = Guest(clock=5)
    assert guest(f"{CLOCKS}/wall-clock", "now") == (5, 0)
    assert guest(f"{CLOCKS}/wall-clock", "resolution") == (0, 1)
    now = guest(f"{CLOCKS}/monotonic-clock", "now")
    assert guest(f"{CLOCKS}/monotonic-clock", "resolution") == 1
    soon = guest(f"{CLOCKS}/monotonic-clock", "subscribe-duration", SECOND)
    late = guest(f"{CLOCKS}/monotonic-clock", "subscribe-instant", now + 3 * SECOND)
    assert [soon, late] == [FIRST_CLOCK, FIRST_CLOCK + 1]
    assert not guest(f"{IO}/poll", "[method]pollable.ready", soon)
    assert guest(f"{IO}/poll", "poll", [late, soon, soon]) == [1, 2]
    assert guest.pauses == [0.0]
    assert guest(f"{CLOCKS}/monotonic-clock", "now") == now + SECOND
    assert guest(f"{IO}/poll", "[method]pollable.ready", soon)
    assert guest(f"{IO}/poll", "poll", [late, READY, soon]) == [1, 2]
    assert guest(f"{IO}/poll", "[method]pollable.block", soon) is None
    assert guest.pauses == [0.0]
    guest(f"{IO}/poll", "[method]pollable.block", late)
    assert guest(f"{CLOCKS}/monotonic-clock", "now") == now + 3 * SECOND


def test_waiting_by_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task waits for as long as is left."""
    monkeypatch.setattr(session, "monotonic_clock", lambda: 1000)
    guest = Guest()
    clock = guest(f"{CLOCKS}/monotonic-clock", "subscribe-duration", SECOND // 2)
    guest(f"{IO}/poll", "[method]pollable.block", clock)
    assert guest.pauses == [0.5]
    far = guest(f"{CLOCKS}/monotonic-clock", "subscribe-duration", 2**64 - 1)
    assert guest.state["wasi 0.2 clocks"][far] == 2**64 - 1


def test_handles_of_clocks() -> None:
    """They end, are used again, and are not without number."""
    guest = Guest(clock=0)
    made = [guest(f"{CLOCKS}/monotonic-clock", "subscribe-instant", 1) for _ in range(MAX_CLOCKS)]
    assert len({*made}) == MAX_CLOCKS
    with pytest.raises(TrapError, match="more than 1024 clocks"):
        guest(f"{CLOCKS}/monotonic-clock", "subscribe-instant", 1)
    drop_handle(guest.host_call(), "pollable", made[7])
    with pytest.raises(TrapError, match=f"{made[7]} as a handle of a pollable"):
        drop_handle(guest.host_call(), "pollable", made[7])
    with pytest.raises(TrapError, match=f"{made[7]} as a handle of a pollable"):
        guest(f"{IO}/poll", "[method]pollable.ready", made[7])
    assert guest(f"{CLOCKS}/monotonic-clock", "subscribe-instant", 1) == made[7]


def test_handles_of_another_kind() -> None:
    """They are traps: where they are used, and where they are dropped."""
    guest = Guest()
    for interface, name, *values in (
        (f"{IO}/streams", f"{INPUT}read", STDOUT, 1),
        (f"{IO}/streams", f"{INPUT}subscribe", READY),
        (f"{IO}/streams", f"{OUTPUT}write", STDIN, b"x"),
        (f"{IO}/streams", f"{OUTPUT}check-write", 0),
        (f"{IO}/streams", f"{OUTPUT}flush", 99),
        (f"{IO}/streams", f"{OUTPUT}splice", STDIN, STDIN, 1),
        (f"{IO}/streams", f"{OUTPUT}splice", STDOUT, STDOUT, 1),
        (f"{IO}/poll", "[method]pollable.block", STDIN),
        (f"{IO}/poll", "poll", [READY, NETWORK]),
        ("wasi:sockets/ip-name-lookup", "resolve-addresses", STDIN, "example"),
    ):
        with pytest.raises(TrapError, match="has no such handle"):
            guest(interface, name, *values)
    for resource, handle in (("descriptor", 3), ("error", 1), ("input-stream", STDERR)):
        with pytest.raises(TrapError, match="has no such handle"):
            drop_handle(guest.host_call(), resource, handle)
    for resource, handle in (("input-stream", STDIN), ("output-stream", STDERR), ("network", 4)):
        drop_handle(guest.host_call(), resource, handle)
    with pytest.raises(TrapError, match="polled nothing"):
        guest(f"{IO}/poll", "poll", [])


def test_random_bytes() -> None:
    """Of the seed's stream, in pieces; no more than the guest's memory holds."""
    guest, other = Guest(random=1), Guest(random=1)
    many = guest("wasi:random/random", "get-random-bytes", PIECE + 5)
    assert guest.pauses == [0.0]
    few = other("wasi:random/insecure", "get-insecure-random-bytes", PIECE)
    assert many[:PIECE] == few and len(many) == PIECE + 5
    number = Guest(random=1)("wasi:random/random", "get-random-u64")
    assert number == int.from_bytes(few[:8], "little")
    seed = Guest(random=1)("wasi:random/insecure-seed", "insecure-seed")
    assert seed == (number, int.from_bytes(few[8:16], "little"))
    with pytest.raises(TrapError, match="more than its memory holds"):
        guest("wasi:random/random", "get-random-bytes", Memory.size + 1)
    poor = Guest(fuel=100)
    with pytest.raises(FuelExhaustedError):
        poor("wasi:random/random", "get-random-bytes", 1000)


def test_there_are_no_files_and_sockets() -> None:
    """The interfaces are there; what they offer is empty, refused, or needs a handle."""
    guest = Guest()
    assert guest("wasi:filesystem/preopens", "get-directories") == []
    network = guest("wasi:sockets/instance-network", "instance-network")
    denied = Err("access-denied")
    assert guest("wasi:sockets/ip-name-lookup", "resolve-addresses", network, "example") == denied
    for kind in ("tcp", "udp"):
        interface = f"wasi:sockets/{kind}-create-socket"
        assert guest(interface, f"create-{kind}-socket", "ipv4") == denied
    for stream in ("stdin", "stdout", "stderr"):
        assert guest(f"{CLI}/terminal-{stream}", f"get-terminal-{stream}") is None
    with pytest.raises(TrapError, match=re.escape("wasi:filesystem/types [method]descriptor.stat")):
        guest("wasi:filesystem/types", "[method]descriptor.stat", 3)
