"""`Wasi`: what a function is given through WASI preview 1, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, final

from attrs import field, fields, frozen

from .._core.config import KiB, is_async
from .._core.text import shown
from .._public import public
from .user_code import identity

DROP: Final = "drop"
TAIL: Final = "tail"
LOG: Final = "log"
WORDS: Final = (DROP, TAIL, LOG)

MAX_STRINGS, MAX_STRINGS_SIZE = 1024, 64 * KiB
"""Largest number of arguments, and of variables, and their size with their ends (bytes): a guest
may have them copied at any time, at once."""

NANOSECONDS: Final = 10**9
MAX_TIME: Final = 2**64 - 1
"""Nanoseconds that WASI can express."""

Output: TypeAlias = Literal["drop", "tail", "log"] | Callable[[str, str], object]
Clock: TypeAlias = int | float | Callable[[], float] | None


def _args(value: Iterable[str]) -> tuple[str, ...]:
    unordered = isinstance(value, (str, bytes, set, frozenset, Mapping))
    if unordered or not isinstance(value, Iterable):
        raise TypeError(f"Wasi: args must be a sequence of str, got {shown(value)}")
    args = tuple(value)
    for arg in args:
        if not isinstance(arg, str):
            raise TypeError(f"Wasi: args must be a sequence of str, one is {shown(arg)}")
    _check_strings("args", args)
    return args


def _env(value: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"Wasi: env must be a mapping of str to str, got {shown(value)}")
    env = dict(value)
    for name, text in env.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"Wasi: env must be a mapping of str to str, got {shown((name, text))}")
        if not name or "=" in name:
            raise ValueError(f"Wasi: {shown(name)} can't be the name of a variable in env")
    _check_strings("env", [f"{name}={text}" for name, text in env.items()])
    return MappingProxyType(env)


def _items(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what two environments must have in common to be the same; the order is the guest's."""
    return tuple(env.items())


def _key(value: object) -> object:
    return identity(value) if callable(value) else value


def _check_strings(what: str, strings: Sequence[str]) -> None:
    if len(strings) > MAX_STRINGS:
        raise ValueError(f"Wasi: {what} may have {MAX_STRINGS} strings, got {len(strings)}")
    size = 0
    for text in strings:
        if "\0" in text:
            raise ValueError(f"Wasi: a string in {what} has a null character: {shown(text)}")
        size += len(encoded(text)) + 1
    if size > MAX_STRINGS_SIZE:
        raise ValueError(
            f"Wasi: {what} may have {MAX_STRINGS_SIZE} bytes, an end for each included, got {size}"
        )


def encoded(text: str) -> bytes:
    """Return the bytes of an argument or a variable, as the system has them."""
    return text.encode("utf-8", "surrogateescape")


def nanoseconds(seconds: object) -> int:
    """Return a time since 1970 in nanoseconds, from the seconds that an application gives.

    Raises:
        TypeError: it is no number.
        ValueError: it is not from 0 to 2**64 nanoseconds.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"Wasi: a clock gives seconds since 1970 as a number, got {shown(seconds)}")
    if not 0 <= seconds < MAX_TIME / NANOSECONDS:
        raise ValueError(
            f"Wasi: a clock gives seconds from 0 to {MAX_TIME // NANOSECONDS}, got {shown(seconds)}"
        )
    return int(seconds * NANOSECONDS)


def _check_sync(what: str, function: object) -> None:
    if is_async(function):
        raise TypeError(f"Wasi: {what} must not be an async function: {shown(function)}")


def _stdin(value: bytes | bytearray | memoryview) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"Wasi: stdin must be bytes, got {shown(value)}")
    return bytes(value)


@public
@final
@frozen
class Wasi:
    r"""Grants a function arguments, environment, input and output through WASI preview 1.

    .. code-block::

        wasi = Wasi(args=("prog", "-v"), env={"TZ": "UTC"}, stderr="log", random=7, clock=0)
        await cache.register("main", wasm, args=(), export="_start", wasi=wasi)

    There are no files, folders and sockets. Everything begins anew at each call, and at the start
    of an instance: the input, the random bytes of a seed, and a fixed clock. In a batch, input and
    random bytes begin anew at each row, and a fixed clock goes on.

    With a seed and a fixed clock, a call in a new or reset instance always gives the same result
    for the same arguments, burns the same fuel, and leaves the same memory.

    A line is printable text without its end: bytes that are not UTF-8, and characters that can't be
    printed, are escaped, as in ``\x1b``. A line of over 1 KiB comes in pieces. An unfinished line
    comes when the call ends.

    Raises:
        TypeError: a parameter has a bad type.
        ValueError: a word, string, name or time is not valid, or there are too many bytes.
    """

    args: tuple[str, ...] = field(default=(), converter=_args)
    """Arguments, the name of the program first; at most 1,024. As UTF-8, and with a null byte for
    each, they have at most 64 KiB."""
    env: Mapping[str, str] = field(factory=dict, converter=_env, eq=_items)
    """Environment variables, with the same limits. The environment of the process is not
    granted."""
    stdin: bytes = field(default=b"", converter=_stdin, repr=shown)
    """Input of each call."""
    stdout: Output = field(default=TAIL, eq=_key)
    """Destination of standard output. ``"drop"``: none. ``"tail"``: `GuestError.output`, if the
    call fails. ``"log"``: also `wasmcache.output` events, at most 16 lines for each call and 100
    events a second for each group; an event counts the lines and bytes that were dropped. A
    function: also that, which is called with each line, as in ``("stdout", "ready")``, in the task
    that called the guest. It must not be async. Each call of it costs 4,000 units of fuel. If it
    raises, the line counts as dropped; if it returns an awaitable, the call raises `TypeError`."""
    stderr: Output = field(default=TAIL, eq=_key)
    """Destination of standard error, as for `stdout`."""
    random: int | None = field(default=None)
    """Seed of the random bytes, which are then the same in each call: for repeatability, not for
    secrets. None: bytes of the system."""
    clock: Clock = field(default=None, eq=_key)
    """Time of the guest (seconds since 1970). A number: each call begins at that time, and the
    clock advances by 1 ns for each unit of fuel, and by each wait of `poll_oneoff`, which does not
    wait then. A function: it is called whenever the guest reads a clock. None: the clocks of the
    system."""

    def __reduce__(self) -> tuple[object, ...]:
        # Not by its fields: a view of a dict can't be pickled or copied.
        given = {attribute.name: getattr(self, attribute.name) for attribute in fields(Wasi)}
        return _made, ({**given, "env": dict(self.env)},)

    @stdout.validator
    @stderr.validator
    def _check_output(self, attribute: object, value: object) -> None:
        name = getattr(attribute, "name", "")
        if isinstance(value, str):
            if value not in WORDS:
                words = ", ".join(f'"{word}"' for word in WORDS)
                raise ValueError(f"Wasi: {name} must be {words} or a function, got {shown(value)}")
        elif not callable(value):
            raise TypeError(f"Wasi: {name} must be a str or a function, got {shown(value)}")
        else:
            _check_sync(name, value)

    @random.validator
    def _check_random(self, _: object, value: object) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"Wasi: random must be an int or None, got {shown(value)}")

    @clock.validator
    def _check_clock(self, _: object, value: object) -> None:
        if callable(value):
            _check_sync("clock", value)
        elif value is not None:
            nanoseconds(value)


def _made(given: Mapping[str, Any]) -> Wasi:
    return Wasi(**given)
