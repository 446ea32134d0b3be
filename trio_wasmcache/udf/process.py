"""The caches of this process: one for each configuration, opened when a function first needs it.

1. A cache is open while functions are registered in it, or calls under way. `forget` removes a
   function; calls under way end as they would have, and the last one closes the cache.
2. A function is registered by the first call of it. Others that come meanwhile wait for that, as
   they would for an instance; those of other functions do not.
3. `_books.lock` is held for some dictionary accesses only; `_Entry.lock` and `_Cache.lock` while
   something is compiled or opened: see `_Lock`.
4. After a fork, the child begins with empty books. It keeps what was in them, and never looks at
   it: the threads that would have to end it are the parent's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, final

import trio
from attrs import frozen

from .. import blocking
from .._core.config import CacheConfig
from .._core.errors import DuplicateFunctionError, UnknownFunctionError
from .._log import MAX_LABEL
from .._portal import POLL
from ..blocking import BlockingCache, BlockingFunction

T = TypeVar("T")

# Functions that are registered in a cache, at most; those that were not used for the longest time
# are removed. A worker that lives for months is given version after version.
MAX_FUNCTIONS: Final = 256
# Hexadecimal digits of a digest that tell versions of a function apart, in its name.
DIGITS: Final = 8


@final
@frozen(kw_only=True)
class Declared:
    """A function, as this module needs it."""

    name: str
    """Name of the function."""
    config: CacheConfig | None
    """Limits of its cache."""
    log_dir: str | None
    """Folder of the log."""
    cache_key: str
    """Digest of what functions that share a cache have in common."""
    function_key: str
    """Digest of all that is registered."""
    register: Callable[[BlockingCache, str], BlockingFunction[Any]]
    """Function that registers it in a cache, under a name that no other version has."""


@final
class _Lock:
    """A lock that may be held for long: a wait for it looks now and then if it was interrupted.

    A signal handler, or a finalizer, that has interrupted the thread which holds it is refused: it
    would wait for itself.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in the block.

        Raises:
            RuntimeError: this thread holds it already.
        """
        while not self._lock.acquire(timeout=POLL):
            pass
        try:
            if self._held:
                raise RuntimeError(
                    "a signal handler or a finalizer has called a WasmUDF, or closed it, while the "
                    "same thread was opening its cache, or registering or removing it: do it later"
                )
            self._held = True
            try:
                yield
            finally:
                self._held = False
        finally:
            self._lock.release()


@final
class _Entry:
    """A function in a cache of this process."""

    def __init__(self) -> None:
        self.lock = _Lock()
        self.function: BlockingFunction[Any] | None = None  # once it is registered
        self.users = 0  # number of calls under way


@final
class _Cache:
    """A cache of this process."""

    def __init__(self) -> None:
        self.lock = _Lock()
        self.cache: BlockingCache | None = None  # once it is open
        self.log: JsonLines | None = None
        # {function_key: entry}, the one that was used last at the end
        self.entries: OrderedDict[str, _Entry] = OrderedDict()

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
        if self.log is not None:
            self.log.close()


@final
class _Books:
    """All caches of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.caches: dict[str, _Cache] = {}  # {cache_key: cache}
        self._of_parents: list[dict[str, _Cache]] = []

    def begin_again(self) -> None:
        """Leave all caches to the process that has forked this one."""
        # As they are: their finalizers may wait for locks of threads that do not run here.
        self._of_parents.append(self.caches)
        self.lock, self.caches = threading.Lock(), {}


_books = _Books()
os.register_at_fork(after_in_child=_books.begin_again)


def run(udf: Declared, what: str, work: Callable[[BlockingFunction[Any]], T]) -> T:
    """Call `work` with the function, registered in a cache of this process.

    Args:
        udf: the function.
        what: what is done, for messages.
        work: what to do; it may be called again if the function was removed before it ran.

    Raises:
        RuntimeError: this is the cache's own thread, or a cache is needed as the program ends, or
            a handler calls it in the midst of another call: see `_Lock`.
        Exception: the errors of opening the cache, of `register`, and of `work`.
    """
    with _used(udf) as (cache, entry):
        while True:
            function = _registered(udf, what, cache, entry)
            try:
                return work(function)
            except UnknownFunctionError:
                if entry.function is function:
                    raise
                # Another thread had it removed while this one waited for an instance.


@contextlib.contextmanager
def _used(udf: Declared) -> Iterator[tuple[_Cache, _Entry]]:
    old: list[tuple[str, _Entry]] = []
    with _books.lock:
        cache = _books.caches.get(udf.cache_key)
        if cache is None:
            cache = _books.caches[udf.cache_key] = _Cache()
        entry = cache.entries.get(udf.function_key)
        if entry is None:
            unused = [item for item in cache.entries.items() if not item[1].users]
            entry = cache.entries[udf.function_key] = _Entry()
            old = unused[: max(0, len(cache.entries) - MAX_FUNCTIONS)]
        cache.entries.move_to_end(udf.function_key)
        entry.users += 1
    try:
        for key, other in old:
            _remove(cache, other)
            with _books.lock:
                _drop(cache, key, other)
        yield cache, entry
    except trio.ClosedResourceError:
        # The cache has failed, or the program ends: a later call opens another, if it can.
        if cache.cache is not None and cache.cache.closed:
            with _books.lock:
                if _books.caches.get(udf.cache_key) is cache:
                    del _books.caches[udf.cache_key]
            if cache.log is not None:
                cache.log.close()
        raise
    finally:
        _give_back(udf, cache, entry)


def _give_back(udf: Declared, cache: _Cache, entry: _Entry) -> None:
    """End a use of an entry; if nothing is left of the cache, close it."""
    with _books.lock:
        entry.users -= 1
        last = _drop(cache, udf.function_key, entry) and _leave(udf.cache_key, cache)
    if last:
        cache.close()


def _drop(cache: _Cache, key: str, entry: _Entry) -> bool:
    """Drop an entry of which nothing is left; return whether it was."""
    if entry.users or entry.function is not None or cache.entries.get(key) is not entry:
        return False
    del cache.entries[key]
    return True


def _leave(key: str, cache: _Cache) -> bool:
    """Take a cache without entries out of the books; return whether it must be closed."""
    if cache.entries:
        return False
    if _books.caches.get(key) is cache:
        del _books.caches[key]
    return True


def _registered(udf: Declared, what: str, cache: _Cache, entry: _Entry) -> BlockingFunction[Any]:
    function = entry.function
    if function is not None:
        return function
    opened = cache.cache
    if opened is None:
        with cache.lock.held():
            opened = cache.cache
            if opened is None:
                opened = _open(udf, cache)
    # Or it would wait here for a thread that waits for this one.
    opened.check_caller(what)
    with entry.lock.held():
        function = entry.function
        if function is None:
            function = _register(udf, opened)
            entry.function = function
        return function


def _open(udf: Declared, cache: _Cache) -> BlockingCache:
    place = f"{socket.gethostname()}/{os.getpid()}"
    label = "".join(c if c.isprintable() else "?" for c in place)[-MAX_LABEL:]
    log = cache.log = JsonLines(udf.log_dir)
    try:
        cache.cache = blocking.open_cache(udf.config, logger=log, label=label)
    except BaseException:
        log.close()
        raise
    return cache.cache


def _register(udf: Declared, cache: BlockingCache) -> BlockingFunction[Any]:
    key = udf.function_key
    try:
        return udf.register(cache, f"{udf.name}@{key[:DIGITS]}")
    except DuplicateFunctionError:  # somebody has looked for two digests that begin the same
        return udf.register(cache, f"{udf.name}@{key}")


def _remove(cache: _Cache, entry: _Entry) -> None:
    with entry.lock.held():
        function, entry.function = entry.function, None
        if function is not None and cache.cache is not None:
            with contextlib.suppress(trio.ClosedResourceError, UnknownFunctionError):
                cache.cache.remove(function.name, function.args)


def forget(udf: Declared, what: str) -> None:
    """Remove a function from this process, and close its cache if there is no other.

    Calls that other threads have under way go on.

    Raises:
        RuntimeError: this is the cache's own thread, or a handler calls it in the midst of a call:
            see `_Lock`; it stays registered then.
    """
    with _books.lock:
        cache = _books.caches.get(udf.cache_key)
        entry = None if cache is None else cache.entries.get(udf.function_key)
        if entry is None:
            return
        assert cache is not None
        entry.users += 1
    try:
        if cache.cache is not None:
            cache.cache.check_caller(what)
        _remove(cache, entry)
    finally:
        _give_back(udf, cache, entry)


@final
class JsonLines:
    """A logger that writes each event as a line of JSON, into a file of this process.

    Each line is written by one call of the system, at the end of the file. So a process that is
    killed leaves whole lines, and several caches may share the file.

    Args:
        folder: where the file is; made if it does not exist. None: events are dropped.
    """

    def __init__(self, folder: str | None) -> None:
        self._file = -1
        if folder is not None:
            place = Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            host = "".join(c if c.isalnum() or c in "-." else "_" for c in socket.gethostname())
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            self._file = os.open(place / f"wasmcache-{host}-{os.getpid()}.jsonl", flags, 0o666)

    def info(self, event: str, **fields: Any) -> None:
        """Write an event."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write an event that is a warning."""
        self._write("warning", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self._file < 0:
            return
        now = datetime.fromtimestamp(time.time(), UTC).isoformat()
        line = {**fields, "event": event, "level": level, "timestamp": now}
        data = json.dumps(line, default=repr).encode() + b"\n"
        os.write(self._file, data)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
