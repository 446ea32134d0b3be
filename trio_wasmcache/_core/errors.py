"""What can go wrong, one class for each thing a caller may want to treat differently.

Rules:

1. Everything of our own derives from `WasmCacheError`.
2. Where Trio has the word (`trio.ClosedResourceError`, `trio.BusyResourceError`), it is Trio's.
3. A Python value that does not fit its declared type is a plain `TypeError`, `ValueError` or
   `OverflowError`, raised before any wasm runs: that is the caller's mistake, not the guest's.
4. A message names the function, the value got, the limit, and what to do about it.
"""

from __future__ import annotations


class WasmCacheError(Exception):
    """Base of all errors of this library; catch it to catch them all."""


class CacheDirError(WasmCacheError):
    """`open_cache` can't keep compiled code in `cache_dir`.

    It is not a folder, is a symbolic link, belongs to somebody else, is open to others, or can't be
    made or written.
    """


class InvalidModuleError(WasmCacheError):
    """`register` was given something that is not a module we can compile.

    Not wasm, truncated, WAT with a syntax error, or using a proposal that is switched off
    (memory64, threads, GC types, exceptions); or compiling it took more than `compile_memory` or
    `compile_seconds`.
    """


class ModuleTooLargeError(WasmCacheError):
    """`register` was given a module over a limit of the configuration.

    Its bytes exceed `max_wasm_size`, its memories together start over `memory_limit`, its tables
    over `table_limit`, it declares more functions, types, exports, elements or locals than a
    compiler should be given, more items altogether than a module of its size needs, or a function
    keeps more values on the stack across calls and blocks than a compiler should be given.
    """


class LinkError(WasmCacheError):
    """The module imports what nobody gives it; the message lists every such import at once."""


class ExportError(WasmCacheError):
    """The module has no export of that name, or it is not a function."""


class SignatureError(WasmCacheError):
    """The declared types are unknown, or not those of the exported function."""


class DuplicateFunctionError(WasmCacheError):
    """A function of that name and those argument types exists, or is being registered."""


class UnknownFunctionError(WasmCacheError):
    """No function of that name and those argument types is registered (or it was removed)."""


class LoadError(WasmCacheError):
    """An instance could not be made: instantiation failed, or the start function trapped.

    The cause (`__cause__`) is the `GuestError` of the start function where it was the guest's.
    """


class CodeMemoryError(WasmCacheError):
    """The function could not run even in an otherwise empty cache.

    Its code and stack exceed `max_code_size`, what its instance may touch `max_running_size`, or
    what it reserves `max_address_space` or the mappings that the kernel allows. Also if the system
    has no memory or addresses left for it once everything idle is evicted: that is the host's lack,
    not the guest's fault.
    """


class DeadlockError(WasmCacheError):
    """Waiting would never end: everyone who could give way is waiting too.

    `chain` tells who waits for what, starting with the task that got this error. All of them are in
    it; the message leaves the middle of a long chain out.
    """

    def __init__(self, message: str, chain: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.chain = chain


class GuestError(WasmCacheError):
    """The guest ended its call without a result. The instance is dropped, the cache is fine.

    A `ResultTooLargeError` does not cost the instance.

    `function` is the name it is registered under, `values` the arguments of the call, `row` the
    number of the row (from 0) if it was one of a batch, else None. An argument of over 64 KiB is
    not kept: the beginning of its text or bytes, or else of its repr, is in its place.
    """

    def __init__(
        self,
        message: str,
        *,
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.function = function
        self.values = values
        self.backtrace = backtrace
        self.row = row

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are copied and unpickled by their `args` alone, without what is named.
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[GuestError], args: tuple[object, ...]) -> GuestError:
    return kind.__new__(kind, *args)


class TrapError(GuestError):
    """The guest trapped. `code` is WebAssembly's name for it, such as ``"unreachable"``.

    `backtrace` holds the wasm frames, innermost first, with function names where the module
    has them.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        row: int | None = None,
    ) -> None:
        super().__init__(message, function=function, values=values, backtrace=backtrace, row=row)
        self.code = code


class FuelExhaustedError(GuestError):
    """The call burnt all of `total_fuel`: an endless loop, or a limit that is too low."""


class StackOverflowError(GuestError):
    """The guest recursed deeper than its half of `stack_size` allows."""


class MemoryLimitError(GuestError):
    """The guest, or the room its arguments need, asked for more than `memory_limit`."""


class ExitError(GuestError):
    """The guest called WASI `proc_exit`; `status` is what it gave, and 0 is an exit too."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        function: str = "",
        values: tuple[object, ...] = (),
        backtrace: tuple[str, ...] = (),
        row: int | None = None,
    ) -> None:
        super().__init__(message, function=function, values=values, backtrace=backtrace, row=row)
        self.status = status


class ResultTooLargeError(GuestError):
    """The result of the call, or the results of the batch up to `row`, exceed `max_result_size`.

    They are counted as the bytes that the guest gives and as the values that Python makes of them;
    a value is refused before it is made. The guest had returned, so its instance is intact, and the
    lease goes on.
    """


class AbiError(GuestError):
    """The guest broke its ABI: an address, a size or a text that cannot be what it says.

    Or an ABI of the application's own calls an export that is missing, or whose values can't cross.
    """
