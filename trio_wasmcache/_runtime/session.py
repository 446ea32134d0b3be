"""What WASI keeps for one call of a guest: input, output, random bytes and time.

1. A session begins with the first host call that needs it, and ends with its call, start or row.
   So no data of one lease is in the error of another, and a guest that asks for nothing pays
   nothing.
2. Everything that is copied here is paid for with fuel first, by the same amounts wherever it goes,
   so that fuel does not depend on limits of the log or on errors of the application.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Callable, Generator
from typing import Any, Final, cast, final

from attrs import field, frozen

from .._core.output import CALL_LINES, MAX_LINE, Lines, Tail, line_text
from .._core.policy.shares import CALL_FUEL
from .._core.text import cut
from .._engine.base import HostCall, HostCaller
from .user_code import call_unprotected
from .wasi_config import (
    DROP,
    LOG,
    MAX_TIME,
    Output,
    Wasi,
    encoded,
    nanoseconds,
)

KEY: Final = "wasi"
"""Key of the session in `HostCaller.keep`."""
RANDOM_BLOCK: Final = 1024
"""Bytes of a seed's stream that are made at once."""
IF_DUE: Final = -1.0
"""A pause that lets others run if the group has had its burst of short calls."""
NAMES: Final = ("stdout", "stderr")

# Sources of time and randomness; used as globals of this module, so that tests can replace them.
wall_clock: Callable[[], int] = time.time_ns
monotonic_clock: Callable[[], int] = time.monotonic_ns
random_bytes: Callable[[int], bytes] = os.urandom


class CallbackError(Exception):
    """Raised for an error of a function of the application, which must not pass for WASI's own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Strings:
    """Arguments, or an environment, as a guest gets them."""

    __slots__ = ("data", "offsets")

    def __init__(self, data: bytes, offsets: tuple[int, ...]) -> None:
        self.data: bytes = data
        """All of them, each with a null byte at its end."""
        self.offsets: tuple[int, ...] = offsets
        """Where each begins."""

    @staticmethod
    def of(strings: list[bytes]) -> Strings:
        """Return some strings in the form that a guest gets."""
        offsets, at = [], 0
        for one in strings:
            offsets.append(at)
            at += len(one) + 1
        return Strings(b"".join(one + b"\0" for one in strings), tuple(offsets))


@final
@frozen(cache_hash=True)
class Grants:
    """A `Wasi` in the form that its functions need; equal if the `Wasi` are."""

    wasi: Wasi
    args: Strings = field(init=False, eq=False, repr=False)
    env: Strings = field(init=False, eq=False, repr=False)
    time: int | None = field(init=False, eq=False, repr=False)
    """Time at which each call begins (nanoseconds); None if the clock is not fixed."""

    @args.default
    def _args(self) -> Strings:
        return Strings.of([encoded(arg) for arg in self.wasi.args])

    @env.default
    def _env(self) -> Strings:
        return Strings.of([encoded(f"{name}={text}") for name, text in self.wasi.env.items()])

    @time.default
    def _time(self) -> int | None:
        clock = self.wasi.clock
        return None if clock is None or callable(clock) else nanoseconds(clock)


NOTHING: Final = Grants(Wasi())
"""What is granted where no `Wasi` is given."""


@final
class Stream:
    """One of the streams that a guest writes to."""

    __slots__ = ("_output", "dropped_bytes", "dropped_lines", "lines", "name", "tail")

    def __init__(self, name: str, output: Output) -> None:
        self.name = name
        self._output = output
        self.tail = Tail()
        self.lines: Lines | None = Lines() if callable(output) or output == LOG else None
        """How its output is cut into lines; None if nobody wants them."""

    @property
    def keeps(self) -> bool:
        """Whether anything is done with what is written."""
        return self._output != DROP

    @property
    def function(self) -> Callable[[str, str], object] | None:
        """Function of the application that gets each line."""
        return self._output if callable(self._output) else None


@final
class Session:
    """What WASI keeps for one call, one start, or one row of a batch.

    Args:
        grants: what the function was registered with.
        caller: the call; None for a host call by hand, in a test.
    """

    __slots__ = (
        "_block",
        "_caller",
        "_drawn",
        "_dropped_bytes",
        "_dropped_lines",
        "_logged",
        "grants",
        "read",
        "streams",
        "waited",
    )

    def __init__(self, grants: Grants, caller: HostCaller | None) -> None:
        self.grants = grants
        self._caller = caller
        self.read = 0
        """Number of bytes of the input that the guest has read."""
        self.waited = 0
        """Nanoseconds that the guest has waited by a fixed clock."""
        self._drawn = 0  # bytes of the seed's stream that were used
        self._block = b""  # the part of that stream that was made last
        self._logged = 0  # lines that were given to the log
        self._dropped_lines = self._dropped_bytes = 0
        wasi = grants.wasi
        self.streams: tuple[Stream, Stream] = (
            Stream(NAMES[0], wasi.stdout),
            Stream(NAMES[1], wasi.stderr),
        )
        if caller is None or caller.quiet:
            self._mute()

    @staticmethod
    def of(call: HostCall, grants: Grants) -> Session:
        """Return the session that a host call is a part of; begin it if there is none."""
        caller = call.caller
        keep: dict[str, Any] = call.state if caller is None else caller.keep
        session = keep.get(KEY)
        if session is None:
            session = keep[KEY] = Session(grants, caller)
        return cast("Session", session)

    # -- time and random bytes

    def now(self, realtime: bool, state: dict[str, Any]) -> int:
        """Return the time (nanoseconds), since 1970 or monotonic since the instance first asked.

        Raises:
            CallbackError: the function that tells the time has failed.
        """
        start, clock = self.grants.time, self.grants.wasi.clock
        if clock is None:
            self._note("a clock", "Wasi(clock=...)")
        if start is not None:
            burnt = 0 if self._caller is None else self._caller.burnt()
            return min(start + burnt + self.waited, MAX_TIME)
        if callable(clock):
            try:
                found = call_unprotected(clock, ())
                _refuse_awaitable("clock", found)
                return nanoseconds(found)
            except Exception as error:
                raise CallbackError(error) from None
        if realtime:
            return wall_clock()
        now = monotonic_clock()
        # Relative, so that a guest can't see how long the machine has been up.
        return now - cast("int", state.setdefault("clock origin", now - 1))

    def wait(self, time: int) -> float:
        """Return how long the task has to wait (seconds) until that many nanoseconds have passed.

        A fixed clock is set ahead instead.
        """
        if self.grants.time is None:
            return time / 1e9
        self.waited = min(self.waited + time, MAX_TIME)
        return 0.0

    def random(self, size: int) -> bytes:
        """Return random bytes: the next ones of the seed's stream, if there is a seed."""
        seed = self.grants.wasi.random
        if seed is None:
            self._note("random bytes", "Wasi(random=...)")
            return random_bytes(size)
        parts, left = [], size
        while left:
            number, at = divmod(self._drawn, RANDOM_BLOCK)
            if not at:
                text = f"trio_wasmcache {seed:x} {number}".encode()
                self._block = hashlib.shake_128(text).digest(RANDOM_BLOCK)
            part = self._block[at : at + left]
            parts.append(part)
            self._drawn += len(part)
            left -= len(part)
        return b"".join(parts)

    def _note(self, what: str, remedy: str) -> None:
        """Note that the guest gets something that is not the same each time."""
        watch = None if self._caller is None else self._caller.watch
        if watch is not None:
            watch.drawn(what, remedy)

    # -- input and output

    def read_input(self, size: int) -> bytes:
        """Return the next bytes of the input, at most `size`."""
        start = self.read
        data = self.grants.wasi.stdin[start : start + size]
        self.read += len(data)
        return data

    def write_lines(
        self, call: HostCall, stream: Stream, data: bytes
    ) -> Generator[float, None, None]:
        """Pass on the lines that `data` completes; yields pauses."""
        assert stream.lines is not None
        for line in stream.lines.add(data):
            if stream.function is not None:
                call.spend(CALL_FUEL)
            self._pass_on(stream, line)
            if stream.function is not None:
                yield IF_DUE

    def _pass_on(self, stream: Stream, line: bytes) -> None:
        caller, taken = self._caller, False
        if caller is None or caller.quiet:
            return
        if stream.function is not None:
            try:
                found = call_unprotected(stream.function, (stream.name, line_text(line)))
            except Exception:
                pass  # an error of the application's log must not fail its guests
            else:
                _refuse_awaitable(stream.name, found)
                taken = True
        elif self._logged < CALL_LINES:
            self._logged += 1
            taken = caller.log_line(stream.name, cut(line_text(line), MAX_LINE))
            if self._logged == CALL_LINES:
                self._mute()
        if not taken:
            self._drop(1, len(line))

    def _mute(self) -> None:
        """Let lines for the log be counted only."""
        for stream in self.streams:
            if stream.lines is not None and stream.function is None:
                stream.lines.muted = True

    def _drop(self, lines: int, size: int) -> None:
        self._dropped_lines += lines
        self._dropped_bytes += size

    def end(self) -> None:
        """Pass on unfinished lines, as the call ends, and log how many were dropped."""
        for stream in self.streams:
            lines = stream.lines
            if lines is None:
                continue
            last = lines.finish()
            if last is not None:
                try:
                    self._pass_on(stream, last)
                except TypeError:  # an awaitable; the call is over
                    self._drop(1, len(last))
            self._drop(lines.muted_lines, lines.muted_bytes)
        if self._dropped_lines and self._caller is not None and not self._caller.quiet:
            self._caller.log_dropped(self._dropped_lines, self._dropped_bytes)

    @property
    def output(self) -> str:
        """The tails of both streams as printable text, standard error last."""
        return "".join(stream.tail.text() for stream in self.streams)


def _refuse_awaitable(what: str, found: object) -> None:
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        raise TypeError(f"Wasi: the function given as {what} must not return an awaitable")
