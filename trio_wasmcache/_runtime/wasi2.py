"""WASI preview 2 (0.2), for a component to which no more is granted than a `Wasi` says.

1. The functions are those of WIT: they take and return values, which the canonical ABI converts.
   What is granted, and what is kept for the length of a call, is that of preview 1: one `Session`,
   the same streams, clocks and random bytes, by the same prices.
2. Handles are numbers. Those of the standard streams, of the network and of what is always ready
   are the same for all instances, so nothing is kept of them. Only clocks that were subscribed to
   are kept, in the state of the instance. A handle of another kind, or of nothing, is a trap, as in
   wasmtime.
3. There are no files, folders and sockets. Functions that need a handle of one can't be called with
   a valid handle, and trap.
4. No function waits: one that would is a generator, which yields the seconds to wait (`Pause`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any, Final, NoReturn, TypeAlias, final

from attrs import field, frozen

from .._abi.base import Value
from .._core.costs import copy_fuel
from .._core.errors import ExitError, TrapError
from .._core.output import TAIL
from .._core.wit.values import Case, Err, Ok
from .._engine.base import HostCall
from .session import NOTHING, CallbackError, Grants, Session, Stream
from .wasi import PIECE, RANDOM_FUEL, STRING_FUEL, SUBSCRIPTION_FUEL, Pause, pass_lines
from .wasi_config import MAX_TIME, NANOSECONDS, encoded

Steps: TypeAlias = Generator[Pause, None, Value]
Run: TypeAlias = Callable[..., Any]

STDIN, STDOUT, STDERR, NETWORK, READY = 1, 2, 3, 4, 5
KINDS: Final = {
    STDIN: "input-stream",
    STDOUT: "output-stream",
    STDERR: "output-stream",
    NETWORK: "network",
    READY: "pollable",
}
"""{handle: name of its resource} of those that are the same for all instances."""
FIRST_CLOCK, MAX_CLOCKS = 16, 1024
"""First handle of a clock that was subscribed to, and how many of them an instance may have."""
CLOCKS: Final = "wasi 0.2 clocks"
"""Key of these clocks in `HostCall.state`: {handle: time at which it is ready (nanoseconds)}."""
CLOSED: Final = Err(Case("closed"))
DENIED: Final = Err("access-denied")
FAMILIES: Final = ("cli", "clocks", "filesystem", "io", "random", "sockets")
"""Packages of which all functions can be imported."""


@final
@frozen
class Wasi2Function:
    """One function of preview 2."""

    interface: str
    """Its interface without a version, such as ``"wasi:cli/environment"``."""
    name: str
    """Its name there, such as ``"get-arguments"``."""
    type: str = field(eq=False)
    """Its type as WIT writes it, such as ``"func() -> list<string>"``; empty: any."""
    _run: Run = field(eq=False, repr=False)
    grants: Grants = NOTHING

    def run(self, call: HostCall, *values: Value) -> Value | Steps:
        """Return the result for some values, or steps that return it.

        Raises:
            TrapError: a handle is not valid, or it asks for too much.
            FuelExhaustedError: it costs more fuel than the call has left.
            ExitError: the guest exits.
            Exception: what a function of the application has raised, as the clock.
        """
        call.grants = self.grants
        try:
            return self._run(call, *values)
        except CallbackError as failed:
            raise failed.error from None


FUNCTIONS: dict[tuple[str, str], Wasi2Function] = {}
"""{(interface, name): function} of those that do something."""


def _preview2(interface: str, name: str, type: str) -> Callable[[Run], Run]:
    """Decorate a function of this file to be one of preview 2."""

    def add(run: Run) -> Run:
        FUNCTIONS[interface, name] = Wasi2Function(interface, name, type, run)
        return run

    return add


def find_function(interface: str, name: str, grants: Grants = NOTHING) -> Wasi2Function | None:
    """Return the function that a component imports; None if it is none of preview 2.

    Args:
        interface: its interface, with the version that the component was made for.
        name: its name.
        grants: what it grants.
    """
    plain, _, version = interface.partition("@")
    package, _, _ = plain.removeprefix("wasi:").partition("/")
    if not plain.startswith("wasi:") or package not in FAMILIES:
        return None
    if version and not version.startswith("0.2."):
        return None
    found = FUNCTIONS.get((plain, name))
    if found is None:

        def refuse(call: HostCall, *values: Value) -> NoReturn:  # noqa: ARG001
            raise _trap(f"called {plain} {name} with a handle that it was never given")

        return Wasi2Function(plain, name, "", refuse, grants)
    return Wasi2Function(plain, name, found.type, found._run, grants)  # noqa: SLF001  # its own class


def drop_handle(call: HostCall, resource: str, handle: int) -> None:
    """End the use of a handle: `resource.drop` of an imported resource.

    Args:
        call: the call.
        resource: name of the resource in its interface.
        handle: the handle.

    Raises:
        TrapError: there is no such handle.
    """
    if resource == "pollable" and call.state.get(CLOCKS, {}).pop(handle, None) is not None:
        return
    if KINDS.get(handle) != resource:
        raise _no_handle(resource, handle)


def _trap(what: str) -> TrapError:
    return TrapError(f"the guest {what}", code="wasi")


def _no_handle(resource: str, handle: int) -> TrapError:
    return _trap(f"gave {handle} as a handle of a {resource}, and has no such handle")


def _check(handle: int, resource: str) -> None:
    if KINDS.get(handle) != resource:
        raise _no_handle(resource, handle)


def _grants(call: HostCall) -> Grants:
    assert isinstance(call.grants, Grants)
    return call.grants


def _session(call: HostCall) -> Session:
    return Session.of(call, _grants(call))


# -- arguments and environment

ENVIRONMENT: Final = "wasi:cli/environment"


def _strings(call: HostCall, strings: list[str]) -> list[str]:
    """Return strings for the guest; bytes that are no UTF-8 are replaced."""
    data = [encoded(one) for one in strings]
    call.spend(len(data) * STRING_FUEL + copy_fuel(sum(map(len, data))))
    return [one.decode(errors="replace") for one in data]


@_preview2(ENVIRONMENT, "get-environment", "func() -> list<tuple<string, string>>")
def _get_environment(call: HostCall) -> list[tuple[str, str]]:
    env = _grants(call).wasi.env
    return list(zip(_strings(call, list(env)), _strings(call, list(env.values())), strict=True))


@_preview2(ENVIRONMENT, "get-arguments", "func() -> list<string>")
def _get_arguments(call: HostCall) -> list[str]:
    return _strings(call, list(_grants(call).wasi.args))


@_preview2(ENVIRONMENT, "initial-cwd", "func() -> option<string>")
def _initial_cwd(call: HostCall) -> None:  # noqa: ARG001
    return None


@_preview2("wasi:cli/exit", "exit", "func(status: result)")
def _exit(call: HostCall, status: Ok | Err) -> NoReturn:  # noqa: ARG001
    code = 0 if isinstance(status, Ok) else 1
    raise ExitError(f"the guest called exit with {'ok' if not code else 'err'}", status=code)


@_preview2("wasi:cli/exit", "exit-with-code", "func(status-code: u8)")
def _exit_with_code(call: HostCall, status: int) -> NoReturn:  # noqa: ARG001
    raise ExitError(f"the guest called exit-with-code({status})", status=status)


# -- standard streams

for _name, _handle in (("stdin", STDIN), ("stdout", STDOUT), ("stderr", STDERR)):
    _kind = KINDS[_handle]

    def _get(call: HostCall, handle: int = _handle) -> int:  # noqa: ARG001
        return handle

    _preview2(f"wasi:cli/{_name}", f"get-{_name}", f"func() -> {_kind}")(_get)

    def _get_terminal(call: HostCall) -> None:  # noqa: ARG001
        return None

    _preview2(
        f"wasi:cli/terminal-{_name}",
        f"get-terminal-{_name}",
        f"func() -> option<terminal-{_kind.removesuffix('-stream')}>",
    )(_get_terminal)

STREAMS: Final = "wasi:io/streams"


def _read(call: HostCall, stream: int, size: int) -> Ok | Err:
    """Read the next bytes of the input, at most `PIECE`."""
    _check(stream, "input-stream")
    session = _session(call)
    left = len(_grants(call).wasi.stdin) - session.read
    if not left:
        return CLOSED
    size = min(size, left, PIECE)
    call.spend(copy_fuel(size))
    return Ok(session.read_input(size))


def _skip(call: HostCall, stream: int, size: int) -> Ok | Err:
    found = _read(call, stream, size)
    return Ok(len(found.value)) if isinstance(found, Ok) else found


for _name in ("", "blocking-"):
    _method = "[method]input-stream."
    _borrow = "self: borrow<input-stream>, len: u64"
    _preview2(
        STREAMS, f"{_method}{_name}read", f"func({_borrow}) -> result<list<u8>, stream-error>"
    )(_read)
    _preview2(STREAMS, f"{_method}{_name}skip", f"func({_borrow}) -> result<u64, stream-error>")(
        _skip
    )


@_preview2(
    STREAMS, "[method]input-stream.subscribe", "func(self: borrow<input-stream>) -> pollable"
)
def _input_ready(call: HostCall, stream: int) -> int:  # noqa: ARG001
    _check(stream, "input-stream")
    return READY


@_preview2(
    STREAMS,
    "[method]output-stream.check-write",
    "func(self: borrow<output-stream>) -> result<u64, stream-error>",
)
def _check_write(call: HostCall, stream: int) -> Ok:  # noqa: ARG001
    _check(stream, "output-stream")
    return Ok(PIECE)


def _write(call: HostCall, stream: int, contents: bytes) -> Ok | Steps:
    """Write to an output, as much as `check-write` allows."""
    _check(stream, "output-stream")
    if len(contents) > PIECE:
        raise _trap(f"wrote {len(contents)} bytes at once, more than the {PIECE} of check-write")
    output = _session(call).streams[stream == STDERR]
    if output.lines is not None:
        return _lines(call, output, contents)
    if output.keeps and contents:
        end = contents[-TAIL:]
        call.spend(copy_fuel(len(end)))
        output.tail.add(len(contents), end)
    return Ok()


def _lines(call: HostCall, output: Stream, contents: bytes) -> Steps:
    yield from pass_lines(call, _session(call), output, contents)
    return Ok()


def _write_zeroes(call: HostCall, stream: int, size: int) -> Ok | Steps:
    return _write(call, stream, bytes(min(size, PIECE + 1)))


def _flush(call: HostCall, stream: int) -> Ok:  # noqa: ARG001
    _check(stream, "output-stream")
    return Ok()


def _splice(call: HostCall, stream: int, source: int, size: int) -> Ok | Err | Steps:
    _check(stream, "output-stream")
    found = _read(call, source, size)
    if isinstance(found, Err):
        return found
    return _spliced(call, stream, found.value)


def _spliced(call: HostCall, stream: int, data: bytes) -> Steps:
    written = _write(call, stream, data)
    if not isinstance(written, Ok):
        yield from written
    return Ok(len(data))


_self = "self: borrow<output-stream>"
_contents, _size = f"{_self}, contents: list<u8>", f"{_self}, len: u64"
for _name, _given, _run in (
    ("write", _contents, _write),
    ("blocking-write-and-flush", _contents, _write),
    ("flush", _self, _flush),
    ("blocking-flush", _self, _flush),
    ("write-zeroes", _size, _write_zeroes),
    ("blocking-write-zeroes-and-flush", _size, _write_zeroes),
):
    _preview2(
        STREAMS, f"[method]output-stream.{_name}", f"func({_given}) -> result<_, stream-error>"
    )(_run)
for _name in ("splice", "blocking-splice"):
    _preview2(
        STREAMS,
        f"[method]output-stream.{_name}",
        f"func({_self}, src: borrow<input-stream>, len: u64) -> result<u64, stream-error>",
    )(_splice)


@_preview2(STREAMS, "[method]output-stream.subscribe", f"func({_self}) -> pollable")
def _output_ready(call: HostCall, stream: int) -> int:  # noqa: ARG001
    _check(stream, "output-stream")
    return READY


# -- clocks

MONOTONIC: Final = "wasi:clocks/monotonic-clock"
WALL: Final = "wasi:clocks/wall-clock"


def _now(call: HostCall) -> int:
    return _session(call).now(False, call.state)


@_preview2(MONOTONIC, "now", "func() -> u64")
def _monotonic_now(call: HostCall) -> int:
    return _now(call)


@_preview2(MONOTONIC, "resolution", "func() -> u64")
def _monotonic_resolution(call: HostCall) -> int:  # noqa: ARG001
    return 1


@_preview2(MONOTONIC, "subscribe-instant", "func(when: u64) -> pollable")
def _subscribe_instant(call: HostCall, when: int) -> int:
    return _subscribe(call, when)


def _subscribe(call: HostCall, when: int) -> int:
    clocks: dict[int, int] = call.state.setdefault(CLOCKS, {})
    if len(clocks) >= MAX_CLOCKS:
        raise _trap(f"subscribed to more than {MAX_CLOCKS} clocks without dropping them")
    if call.caller is not None and call.caller.watch is not None:
        call.caller.watch.changed("subscribes to a clock")
    handle = next(number for number in itertools.count(FIRST_CLOCK) if number not in clocks)
    clocks[handle] = when
    return handle


@_preview2(MONOTONIC, "subscribe-duration", "func(when: u64) -> pollable")
def _subscribe_duration(call: HostCall, when: int) -> int:
    return _subscribe(call, min(_now(call) + when, MAX_TIME))


@_preview2(WALL, "now", "func() -> datetime")
def _wall_now(call: HostCall) -> tuple[int, int]:
    return divmod(_session(call).now(True, call.state), NANOSECONDS)


@_preview2(WALL, "resolution", "func() -> datetime")
def _wall_resolution(call: HostCall) -> tuple[int, int]:  # noqa: ARG001
    return 0, 1


# -- waiting

POLL: Final = "wasi:io/poll"


def _left(call: HostCall, pollable: int) -> int:
    """Return the nanoseconds until a pollable is ready."""
    if pollable == READY:
        return 0
    clocks: dict[int, int] = call.state.get(CLOCKS, {})
    due = clocks.get(pollable)
    if due is None:
        raise _no_handle("pollable", pollable)
    return max(0, due - _now(call))


@_preview2(POLL, "[method]pollable.ready", "func(self: borrow<pollable>) -> bool")
def _ready(call: HostCall, pollable: int) -> bool:
    return not _left(call, pollable)


@_preview2(POLL, "[method]pollable.block", "func(self: borrow<pollable>)")
def _block(call: HostCall, pollable: int) -> Steps | None:
    left = _left(call, pollable)
    return _wait(call, left, None) if left else None


@_preview2(POLL, "poll", "func(in: list<borrow<pollable>>) -> list<u32>")
def _poll(call: HostCall, pollables: list[int]) -> list[int] | Steps:
    """Return the positions of those that are ready; if none is, wait for the earliest ones."""
    if not pollables:
        raise _trap("polled nothing")
    call.spend(len(pollables) * SUBSCRIPTION_FUEL)
    left = [_left(call, one) for one in pollables]
    earliest = min(left)
    ready = [at for at, one in enumerate(left) if one == earliest]
    return _wait(call, earliest, ready) if earliest else ready


def _wait(call: HostCall, time: int, result: Value) -> Steps:
    yield _session(call).wait(time)
    return result


# -- random bytes


def _random_bytes(call: HostCall, size: int) -> bytes | Steps:
    if call.memory is None or size > call.memory.size:
        raise _trap(f"asked for {size} random bytes, more than its memory holds")
    if size <= PIECE:
        call.spend(size * RANDOM_FUEL)
        return _session(call).random(size)
    return _many_random_bytes(call, size)


def _many_random_bytes(call: HostCall, size: int) -> Steps:
    parts = []
    for start in range(0, size, PIECE):
        if start:
            yield 0.0
        part = min(PIECE, size - start)
        call.spend(part * RANDOM_FUEL)
        parts.append(_session(call).random(part))
    return b"".join(parts)


def _random_number(call: HostCall) -> int:
    call.spend(8 * RANDOM_FUEL)
    return int.from_bytes(_session(call).random(8), "little")


for _name in ("", "insecure-"):
    _interface = f"wasi:random/{_name.removesuffix('-') or 'random'}"
    _preview2(_interface, f"get-{_name}random-bytes", "func(len: u64) -> list<u8>")(_random_bytes)
    _preview2(_interface, f"get-{_name}random-u64", "func() -> u64")(_random_number)


@_preview2("wasi:random/insecure-seed", "insecure-seed", "func() -> tuple<u64, u64>")
def _insecure_seed(call: HostCall) -> tuple[int, int]:
    return _random_number(call), _random_number(call)


# -- files and sockets: there are none


@_preview2(
    "wasi:filesystem/preopens", "get-directories", "func() -> list<tuple<descriptor, string>>"
)
def _get_directories(call: HostCall) -> list[object]:  # noqa: ARG001
    return []


@_preview2("wasi:sockets/instance-network", "instance-network", "func() -> network")
def _instance_network(call: HostCall) -> int:  # noqa: ARG001
    return NETWORK


def _create_socket(call: HostCall, family: str) -> Err:  # noqa: ARG001
    return DENIED


for _name in ("tcp", "udp"):
    _preview2(
        f"wasi:sockets/{_name}-create-socket",
        f"create-{_name}-socket",
        f"func(address-family: ip-address-family) -> result<{_name}-socket, error-code>",
    )(_create_socket)


@_preview2(
    "wasi:sockets/ip-name-lookup",
    "resolve-addresses",
    "func(network: borrow<network>, name: string) -> result<resolve-address-stream, error-code>",
)
def _resolve_addresses(call: HostCall, network: int, name: str) -> Err:  # noqa: ARG001
    _check(network, "network")
    return DENIED
