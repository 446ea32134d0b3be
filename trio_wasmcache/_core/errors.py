"""The errors of this library, one class for each case that a caller may handle differently.

Rules:

1. All classes of this library derive from `WasmCacheError`.
2. Where Trio has an error for the case (`trio.ClosedResourceError`, `trio.BusyResourceError`), that
   is raised.
3. A Python value that does not fit its declared type raises a plain `TypeError`, `ValueError` or
   `OverflowError` before any wasm runs: that is the caller's mistake, not the guest's.
4. A message names the function, the value got, the limit, and the remedy.
5. Each class can be made from a message alone, as an application's own tests and retries do, so all
   other parameters have defaults; and each error can be pickled and copied.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol, Self, SupportsIndex

from .._public import public
from .frames import Frame
from .portable import copy_error, deepcopy_error, reduce_error
from .text import printable, shown

TEXT_LIMIT: Final = 2000
"""Characters of a guest's text in a message, at most."""


@public
class WasmCacheError(Exception):
    """Base of all errors of this library.

    Errors can be pickled and copied, with all their attributes and notes. Pickling replaces an
    attribute that can't be pickled, or an item of `values`, by its repr, cut to 100 characters;
    `copy.deepcopy` shares one that can't be copied. Causes and tracebacks are not pickled or
    copied, as with other exceptions.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        return reduce_error(self, protocol)

    def __copy__(self) -> Self:
        return copy_error(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return deepcopy_error(self, memo)


@public
class CacheDirError(WasmCacheError):
    """`open_cache` can't keep compiled code in `cache_dir`.

    It is not a folder, is a symbolic link, belongs to another user, is open to others, or can't be
    made or written.
    """


@public
class InvalidModuleError(WasmCacheError):
    """`register` was given something that is not a module it can compile.

    It is not wasm, is truncated, is WAT with a syntax error, or uses a proposal that is switched
    off (threads, GC types, legacy exceptions); or compiling it took more than `compile_memory` or
    `compile_seconds`. A component may also use something that is not supported.
    """


@public
class ModuleTooLargeError(WasmCacheError):
    """`register` was given a module that exceeds a limit.

    The limits are:

    - `max_wasm_size` for its bytes without custom sections, and 8 times as much for all its bytes;
    - `memory_limit` for its memories together, as they start, and `table_limit` for its tables;
    - numbers of functions, types, exports, elements and locals that a compiler should be given, and
      a number of items altogether, in proportion to its size;
    - the number of values that a function keeps on the stack across calls and blocks.
    """


@public
class LinkError(WasmCacheError):
    """`register` was given a module with imports that nothing provides; the message lists them all.

    Entering a lease raises it, too, if an import can't be linked.
    """


@public
class ExportError(WasmCacheError):
    """`register` was given the name of an export that the module lacks, or that is no function.

    It is also raised if the module lacks an export that the ABI needs.
    """


@public
class SignatureError(WasmCacheError):
    """`register` was given an unknown ABI, or types that it, or the export, does not have.

    `HostFunction` raises it, too, for unknown types.
    """


@public
class DuplicateFunctionError(WasmCacheError):
    """`register` was given a name and argument types that are registered, or being registered.

    With ``replace=True``, it replaces a registered function instead.
    """


@public
class UnknownFunctionError(WasmCacheError):
    """`acquire`, `warm` or `remove` was given a name and argument types that are not registered.

    A lease raises it when it is entered, also if the function is removed while it waits.
    """


@public
class LoadError(WasmCacheError):
    """Entering a lease could not make an instance: instantiating or starting the guest failed.

    If the guest's start function failed, the cause (`__cause__`) is its `GuestError`. `Lease.map`
    raises it, too, if the driver of the batch can't be made.
    """

    def __init__(
        self, message: str, *, output: str = "", refused_memory: int | None = None
    ) -> None:
        super().__init__(message)
        self.output: str = output
        """Output of the guest while it started, as in `GuestError.output`."""
        self.refused_memory: int | None = refused_memory
        """Bytes that the guest asked for while it started, as in `GuestError.refused_memory`."""


@public
class CodeMemoryError(WasmCacheError):
    """Entering a lease failed: the function could not run even in an otherwise empty cache.

    Its code and stack exceed `max_code_size`, its worst size exceeds `max_running_size`, or its
    reserved addresses or mappings exceed `max_address_space` or the kernel's limit. It is also
    raised if the system has no memory or addresses left for it after everything idle was evicted:
    then the host lacks resources, and the guest is not at fault.
    """


@public
class DeadlockError(WasmCacheError):
    """Entering a lease, or preparing a function, would wait for ever.

    Every task that could end the wait is waiting, too. A lease that the exception of a signal
    handler has kept from ending (see `Lease`) counts as held by its task.
    """

    def __init__(self, message: str, chain: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.chain: tuple[str, ...] = chain
        """All tasks and what they wait for, starting with the task that got this error. The message
        omits the middle of a long chain."""


class Dumped(Protocol):
    """What a failed call left of its guest; see `dumps`."""

    def encode(self, frames: tuple[Frame, ...]) -> bytes | None:
        """Return the core dump with the frames of its error; None: it is not kept any more."""


@public
class GuestError(WasmCacheError):
    """Base of the errors of `Lease.call` and `Lease.map` that are the guest's fault.

    The guest ended its call without a result. Its instance is dropped, except after a
    `ResultTooLargeError` or a `PluginError`; the cache is intact.
    """

    # Of the class, so that only an error that has a dump has the attribute.
    _dump: Dumped | None = None

    def __init__(
        self,
        message: str,
        *,
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        frames: tuple[Frame, ...] = (),
        row: int | None = None,
        output: str = "",
        refused_memory: int | None = None,
    ) -> None:
        super().__init__(message)
        self.function: str = function
        """Name under which the function is registered."""
        self.values: tuple[object, ...] = values
        """Arguments of the call, or of the row. Arguments of more than 64 KiB are not kept; the
        beginning of the text, of the bytes, or of the repr replaces them."""
        self.backtrace: tuple[str, ...] = backtrace
        """Wasm frames, innermost first, with function names if the module has them."""
        self.frames: tuple[Frame, ...] = frames
        """The wasm frames, innermost first, at most 20; with files and lines if the module has
        DWARF sections (``-g``) that were read in time."""
        self.row: int | None = row
        """Number of the row of a batch that failed, from 0; None for a call."""
        self.output: str = output
        """Output of the call to WASI's stdout, then that to stderr, as lines of printable text: the
        last 2 KiB of each, unless `Wasi` says ``"drop"``. The message shows some of these lines."""
        self.refused_memory: int | None = refused_memory
        """Bytes by which the guest last asked its memory to grow, if `memory_limit` refused that.
        Usually the guest then fails at once; if a call goes on without the memory, later calls of
        its instance report it, too, until memory grows again. None if memory was not refused, or if
        the module's own maximum refused it."""

    def keep_dump(self, dump: Dumped) -> None:
        """Keep what the call has left, for `dump`; the cache calls it.

        Args:
            dump: what is written later, as long as it is kept.
        """
        self._dump = dump

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write a core dump of the guest: its stack's functions, globals and memories.

        It is a file in the `format of WebAssembly's tools
        <https://github.com/WebAssembly/tool-conventions/blob/main/Coredump.md>`_, as `wasmgdb`
        reads it. It contains all memory of the guest, and so what the call was given. Values on the
        stack and in locals are not known. Memory beyond 64 MiB is left out.

        It blocks while the file is written.

        Args:
            path: the file, which must not exist. Only the user may read it.

        Raises:
            LookupError: there is no dump: `CacheConfig.keep_dumps` is 0, as by default; later calls
                failed, and took its place; it is of a row without which the batch went on; the
                cache is closed; or the error was pickled.
            FileExistsError: the file exists.
            OSError: the file can't be written.
        """
        data = None if self._dump is None else self._dump.encode(self.frames)
        if data is None:
            raise LookupError(
                "there is no core dump of this call: open_cache(CacheConfig(keep_dumps=10)) keeps "
                "those of the last 10 failed calls while the cache is open"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(data)


@public
class TrapError(GuestError):
    """The guest trapped: it executed an instruction that can't succeed, as a division by 0."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        frames: tuple[Frame, ...] = (),
        row: int | None = None,
        output: str = "",
        refused_memory: int | None = None,
    ) -> None:
        super().__init__(
            message,
            function=function,
            values=values,
            backtrace=backtrace,
            frames=frames,
            row=row,
            output=output,
            refused_memory=refused_memory,
        )
        self.code: str = code
        """WebAssembly's name for the trap, such as ``"unreachable"``; empty if the error was made
        without one."""


@public
class FuelExhaustedError(GuestError):
    """The call burnt all of `total_fuel`: its loop is endless, or the limit is too low."""


@public
class StackOverflowError(GuestError):
    """The guest recursed deeper than its half of `stack_size` allows.

    `Lease.invoke` also raises it if the guest and its host functions call each other more than 16
    levels deep.
    """


@public
class MemoryLimitError(GuestError):
    """The guest, or the space for its arguments, needed more than `memory_limit`."""


@public
class ExitError(GuestError):
    """The guest called WASI's `proc_exit`, with any status.

    A status of 0 is no error only if it ends a call of a command: see `InstanceCache.register`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = -1,
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        frames: tuple[Frame, ...] = (),
        row: int | None = None,
        output: str = "",
        refused_memory: int | None = None,
    ) -> None:
        super().__init__(
            message,
            function=function,
            values=values,
            backtrace=backtrace,
            frames=frames,
            row=row,
            output=output,
            refused_memory=refused_memory,
        )
        self.status: int = status
        """Status that the guest gave; -1 if the error was made without one."""


@public
class ResultTooLargeError(GuestError):
    """The result of the call, or the results of the batch up to `row`, exceed `max_result_size`.

    The bytes that the guest gives are counted, and so are the Python values made of them. A value
    is refused before it is made. The guest has returned by then, so its instance is intact, and the
    lease can still be used.
    """


@public
class PluginError(GuestError):
    """An Extism plugin reported an error, or returned a status other than 0.

    The plugin has returned in order, so its instance is intact, with its variables, and the lease
    can still be used.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = -1,
        text: str = "",
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        frames: tuple[Frame, ...] = (),
        row: int | None = None,
        output: str = "",
        refused_memory: int | None = None,
    ) -> None:
        super().__init__(
            message,
            function=function,
            values=values,
            backtrace=backtrace,
            frames=frames,
            row=row,
            output=output,
            refused_memory=refused_memory,
        )
        self.status: int = status
        """Status that the plugin returned, which may be 0; -1 if the error was made without one."""
        self.text: str = text
        """Text of the error that the plugin reported, at most 2 KiB of UTF-8, as it is; empty if it
        only returned a status."""


@public
class AbiError(GuestError):
    """The guest broke its ABI: an address, a size or a text is not valid.

    It is also raised if an ABI of the application calls an export that is missing, or whose types
    can't cross.
    """


@public
class WitError(WasmCacheError):
    """A component's function returned the error of its `result` type.

    The function has returned in order, so this is no `GuestError`: the instance is intact, and the
    lease can still be used. A host function raises it, too, to return the error of its own `result`
    type to the guest.
    """

    value: Any
    """The error's value; None if the type has none. A component's own type for it determines what
    it is: often a str, an enum's name (str) or a `Case`."""
    function: str
    """Name of the function that returned it; empty if it was raised by hand."""
    row: int | None
    """Number of the row that returned it, in a batch, from 0; else None."""

    def __init__(self, value: Any = None, *, function: str = "") -> None:
        text = "an error without a value" if value is None else shown(value)
        if isinstance(value, str):
            text = printable(value, TEXT_LIMIT)
        super().__init__(f"{function} returned an error: {text}" if function else text)
        self.value = value
        self.function = function
        self.row = None


INTACT: Final = (ResultTooLargeError, PluginError)
"""Errors that are raised once the guest has returned, so that its instance is intact."""
