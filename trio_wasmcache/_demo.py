"""The demo: a small cache at work, explained as it runs, with its own log in between.

1. Lines of the demo itself have no mark; lines of the cache's log are behind a bar, with a few
   fields of each event under their real names.
2. The log is written by a thread of the cache's own, a little later. So after each step the demo
   waits until it has seen the event that ends the step, which keeps the output in order.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from typing import final

import trio

from . import CacheConfig, CacheStats, Function, InstanceCache, KiB, open_cache

COLUMNS = 80
STACK = 64 * KiB
IDLE_TIMEOUT = 1.0
# Longest wait for an event (seconds); then the demo goes on without it.
PATIENCE = 5.0

BOLD, DIM, GREEN, YELLOW, RED, CYAN = "1", "2", "32", "33", "31", "36"
COLOUR = {
    "registered": CYAN,
    "loaded": YELLOW,
    "blocked": YELLOW,
    "acquired": GREEN,
    "evicted": RED,
}
# {event: fields to show after the function's name}; the README lists all fields.
SHOWN = {
    "opened": ("max_size_bytes", "max_code_size_bytes"),
    "resized": ("max_code_size_bytes", "idle_timeout_seconds"),
    "registered": ("code_bytes", "compile_seconds"),
    "loaded": ("module_loaded", "load_seconds"),
    "acquired": ("hit", "wait_seconds", "uses"),
    "blocked": ("waits_for",),
    "recycled": ("size_bytes", "total_size_bytes"),
    "evicted": ("reason", "freed_bytes", "freed_code_bytes"),
    "closed": ("hits", "misses", "blocks", "calls", "evictions"),
}

# No memory of its own, so an instance counts one page.
FIB = """(module (func $fib (export "fib") (param $n i64) (result i64)
  (if (result i64) (i64.lt_s (local.get $n) (i64.const 2))
    (then (local.get $n))
    (else (i64.add
      (call $fib (i64.sub (local.get $n) (i64.const 1)))
      (call $fib (i64.sub (local.get $n) (i64.const 2))))))))"""
GCD = """(module (func (export "gcd") (param $a i64) (param $b i64) (result i64)
  (local $rest i64)
  (loop $next
    (if (i64.ne (local.get $b) (i64.const 0)) (then
      (local.set $rest (i64.rem_u (local.get $a) (local.get $b)))
      (local.set $a (local.get $b))
      (local.set $b (local.get $rest))
      (br $next))))
  (local.get $a)))"""
# Counts the primes below n, at most 131,072, with a byte for each number: two pages of memory.
PRIMES = """(module (memory (export "memory") 2)
  (func (export "primes") (param $n i32) (result i32)
  (local $i i32) (local $j i32) (local $count i32)
  (memory.fill (i32.const 0) (i32.const 0) (local.get $n))
  (local.set $i (i32.const 2))
  (block $done (loop $next
    (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
    (if (i32.eqz (i32.load8_u (local.get $i))) (then
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (local.set $j (i32.shl (local.get $i) (i32.const 1)))
      (block $crossed (loop $cross
        (br_if $crossed (i32.ge_u (local.get $j) (local.get $n)))
        (i32.store8 (local.get $j) (i32.const 1))
        (local.set $j (i32.add (local.get $j) (local.get $i)))
        (br $cross)))))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br $next)))
  (local.get $count)))"""


@final
class Teller:
    """Prints the demo's text, and the cache's log in between: it is the logger of the cache.

    The cache calls `info` and `warning` from its log thread, as those of a structlog logger.
    """

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._began = time.monotonic()
        self._seen: dict[tuple[str, object], int] = {}
        self._number = 0
        self._writing = threading.Lock()

    def title(self, text: str) -> None:
        """Print a headline."""
        self._write(self._paint(BOLD, text))

    def step(self, headline: str, text: str) -> None:
        """Begin a step: print its name and what it is going to show."""
        self._number += 1
        self._write("\n" + self._paint(BOLD, f"{self._number}. {headline}"))
        self.say(text)

    def say(self, text: str) -> None:
        """Print a paragraph."""
        width = min(COLUMNS, shutil.get_terminal_size().columns)
        self._write(textwrap.fill(text, width))

    def table(self, rows: list[tuple[str, int, str]]) -> None:
        """Print rows of a name, a number and its meaning."""
        for name, number, meaning in rows:
            self._write(f"  {name:<16}{number:>6}   {meaning}")

    def info(self, event: str, **fields: object) -> None:
        """Print one event of the cache's log, and count it."""
        kind = event.removeprefix("wasmcache.")
        if kind in SHOWN:
            head = f"| {time.monotonic() - self._began:4.2f} "
            name = f"{kind:10} "
            shown = f"{fields['function']:6} " if "function" in fields else ""
            shown += " ".join(f"{field}={_plain(fields[field])}" for field in SHOWN[kind])
            shown = shown[: COLUMNS - len(head) - len(name)]
            self._write(head + self._paint(COLOUR.get(kind, DIM), name) + shown)
        for about in (None, fields.get("reason", fields.get("function"))):
            self._seen[kind, about] = self._seen.get((kind, about), 0) + 1

    warning = info

    def count(self, kind: str, about: object = None) -> int:
        """Return the number of events of a kind seen so far: all, or of one function or reason."""
        return self._seen.get((kind, about), 0)

    async def seen(self, kind: str, about: object = None, *, times: int = 1) -> None:
        """Wait until the log has had the event `times` times, for at most `PATIENCE` seconds."""
        with trio.move_on_after(PATIENCE):
            while self.count(kind, about) < times:  # noqa: ASYNC110  (it happens in a thread)
                await trio.sleep(0.01)

    def _write(self, text: str) -> None:
        with self._writing:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    return text if text and " " not in text else f'"{text}"'


async def demo(teller: Teller, pause: float) -> None:
    """Run the whole demo, in a few seconds."""
    # Nothing may be evicted for idleness before its step, on however slow a machine.
    config = CacheConfig(max_size=256 * KiB, idle_timeout=60.0, stack_size=STACK, log_uses=True)
    teller.title("trio_wasmcache: WebAssembly functions for Trio, kept warm between calls")
    teller.say(
        "Lines behind a bar are the cache's own structured log as it comes in: the seconds since "
        "the start, the event, the function, and some more of its fields. Here it also has every "
        "acquire and recycle, which are logged only with log_uses=True."
    )
    async with open_cache(config, logger=teller) as cache:
        await teller.seen("opened")
        functions = await _register(cache, teller)
        await trio.sleep(pause)
        await _miss_and_hit(functions, teller)
        await trio.sleep(pause)
        await _block(functions, teller)
        await trio.sleep(pause)
        await _evict_for_size(functions, teller)
        await trio.sleep(pause)
        await _evict_for_code(cache, functions, teller)
        await trio.sleep(pause)
        await _evict_for_idleness(cache, teller)
        stats = cache.stats()
        teller.step(
            "Close",
            "Leaving the block of open_cache stops all calls and frees what is left. Here nothing "
            "is.",
        )
    _tell_stats(stats, teller)


async def _register(cache: InstanceCache, teller: Teller) -> dict[str, Function]:
    teller.step(
        "Register",
        "Three functions, compiled in a thread while the event loop goes on. Idle instances of "
        "them may take 256 KiB together.",
    )
    await cache.register("fib", FIB, args=("i64",), returns="i64")
    await cache.register("gcd", GCD, args=("i64", "i64"), returns="i64")
    await cache.register("primes", PRIMES, args=("u32",), returns="u32")
    await teller.seen("registered", times=3)
    return {function.name: function for function in cache.functions()}


async def _miss_and_hit(functions: dict[str, Function], teller: Teller) -> None:
    teller.step(
        "Miss, then hit",
        "The first acquire of fib finds nothing: code is loaded and an instance is made. The "
        "second gets the same instance, still warm.",
    )
    fib = functions["fib"]
    miss, result = await _timed(fib, 20)
    hit, _ = await _timed(fib, 20)
    await teller.seen("recycled", "fib", times=2)
    teller.say(
        f"fib(20) = {result}: {miss * 1000:.2f} ms with the miss, {hit * 1000:.2f} ms with the hit."
    )


async def _timed(function: Function, *values: object) -> tuple[float, object]:
    began = time.perf_counter()
    result = await function.call(*values)
    return time.perf_counter() - began, result


async def _block(functions: dict[str, Function], teller: Teller) -> None:
    teller.step(
        "Block",
        "An instance has one holder at a time. Two tasks want fib: the second waits until the "
        "first has finished fib(37). Meanwhile the event loop is free, and gcd is called.",
    )
    fib, gcd = functions["fib"], functions["gcd"]
    order: list[str] = []

    async def call(n: int) -> None:
        await fib.call(n)
        order.append(f"fib({n})")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, 37)
        await teller.seen("acquired", "fib", times=3)
        nursery.start_soon(call, 1)
        await teller.seen("blocked", "fib")
        result = await gcd.call(1071, 462)
        order.append(f"gcd(1071, 462) = {result}")
    await teller.seen("recycled", "fib", times=4)
    teller.say(f"Done in this order: {', '.join(order)}.")


async def _evict_for_size(functions: dict[str, Function], teller: Teller) -> None:
    teller.step(
        "Evict for size",
        "An instance of primes may touch 192 KiB. With fib and gcd idle, 64 KiB each, that is "
        "over 256 KiB: when it comes back, the least recently used one is evicted.",
    )
    result = await functions["primes"].call(100_000)
    await teller.seen("evicted", "size")
    await teller.seen("recycled", "primes")
    teller.say(f"There are {result} primes below 100,000.")


async def _evict_for_code(
    cache: InstanceCache, functions: dict[str, Function], teller: Teller
) -> None:
    names = {info.function for info in cache.entries()}
    missing = next(name for name in functions if name not in names)
    room = sum(functions[name].code_size for name in names) + STACK
    teller.step(
        "Evict for code",
        f"Machine code has a budget of its own. Cut to {room // KiB} KiB it holds the two modules "
        f"that are loaded now and the stack of one call. Calling {missing} takes a third: the "
        "module used longest ago is evicted, with its instances.",
    )
    cache.resize(max_code_size=room)
    values = {"fib": (10,), "gcd": (6, 4), "primes": (10,)}
    await functions[missing].call(*values[missing])
    await teller.seen("evicted", "code")


async def _evict_for_idleness(cache: InstanceCache, teller: Teller) -> None:
    teller.step(
        "Evict for idleness",
        f"Nobody calls any more. Cut to {IDLE_TIMEOUT} s, the timeout evicts each instance when "
        "its own time is up.",
    )
    cache.resize(idle_timeout=IDLE_TIMEOUT)
    left = cache.stats().idle_instances
    await teller.seen("evicted", "idle", times=left)


def _tell_stats(stats: CacheStats, teller: Teller) -> None:
    reasons = ", ".join(f"{reason} {n}" for reason, n in stats.evictions.items() if n)
    teller.say("")
    teller.title("What cache.stats() said just before")
    teller.table(
        [
            ("hits", stats.hits, "leases that found an instance ready"),
            ("misses", stats.misses, "leases for which something was loaded"),
            ("blocks", stats.blocks, "acquires that had to wait"),
            ("calls", stats.calls, "calls of guest functions"),
            ("evictions", sum(stats.evictions.values()), f"by reason: {reasons}"),
            ("idle instances", stats.idle_instances, "still in the cache"),
            ("functions", stats.functions, f"{stats.artifact_size // KiB} KiB compiled, at rest"),
        ]
    )
