"""Writes Extism's kernel: the module whose functions an Extism plugin imports.

A plugin reads its input and writes its output through blocks of a memory that is not its own. Here,
that memory belongs to a module in the plugin's store, so that a byte costs the plugin a call within
wasm. The kernel has two memories:

- `blocks` has the contents of blocks: the input, the output, and all that the plugin allocates.
- `books` tells where the blocks are, and has the config and the variables:

    | persistent fields | fields of a call | free lists | table of blocks | config | vars |

1. A plugin reads and writes `blocks` alone, and there only from `FIRST` to the end of the last
   block, so that it can't damage the books. A byte elsewhere reads as 0, and isn't written.
2. A call begins with what `CallBooks` writes: one block, the input, or none. All other blocks of
   the last call are gone then; a new block is filled with zeros.
3. Blocks are made one after the other while the memory and the table have room. Only then is a
   freed block used again, and only then does the memory grow. So a freed block keeps its content
   for as long as it does with Extism, whose plugins may have freed their output.
4. The config and the variables stay in the books from call to call, in the form of entries: the
   lengths of key and value (32 bits each), the key, the value.
5. The kernel has no start function, no globals and no tables: its state is its memories.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import ClassVar, Final

from attrs import frozen

from ..config import WASM_PAGE, MiB
from .assembler import assemble

FIRST: Final = 16
"""Address of the first block. No block is at 0, which stands for an empty one, or for none."""
MAX_BLOCKS: Final = 65_536
"""Number of blocks of a call, at most; one that is used again after it was freed counts once."""
VARS_LIMIT: Final = MiB
"""Bytes of all variables together, as Extism counts them: `VAR_COST` for each, besides its own."""
VAR_COST: Final = 48
BLOCK: Final = "block"
"""The type of a parameter or result of a host function that is the offset of a block."""

# Addresses in the books: persistent fields, fields of a call, the free list of each class of sizes.
_CAPACITY, _CONFIG_SIZE, _VARS_SIZE, _VARS_COST = 0, 4, 8, 12
CALL_AT: Final = 16
_COUNT, _POSITION, _INPUT, _INPUT_SIZE, _OUTPUT, _OUTPUT_SIZE = 16, 20, 24, 28, 32, 36
_ERROR, _ERROR_SIZE, _STATUS, _HEADERS = 40, 44, 48, 52
_HEADS, _CLASSES = 56, 32
_TABLE: Final = _HEADS + 4 * _CLASSES  # 184
_BLOCK_SIZE: Final = 16
"""Bytes of a block in the table: address, capacity, length, link."""
# A link is one of these, or the next freed block of the same class: its number and one, or 0.
_ACTIVE, _KEPT = -1, -2
_FIRST_CAPACITY: Final = 192
_MAX_PAGES: Final = 65_535
# Reasons that the kernel gives to the host for a trap.
OUT_OF_MEMORY, TOO_MANY_BLOCKS, NO_BLOCK, OUTSIDE, VARS_FULL, NO_HTTP = range(6)
# What a block is for, where it is none (`NO_BLOCK`).
HANDLES: Final = ("config key", "var key", "var value", "http request")
LOG_LEVELS: Final = ("trace", "debug", "info", "warn", "error")
OFF: Final = 0x7FFFFFFF
"""What `get_log_level` returns if nothing is logged."""

_BOOKS = struct.Struct("<10I")


@frozen
class CallBooks:
    """The fields of one call, as the host writes them before and reads them after it."""

    output: int
    output_size: int
    error: int
    error_size: int

    SIZE: ClassVar[int] = _BOOKS.size
    ENDED: ClassVar[struct.Struct] = struct.Struct("<4I")
    """These four fields, which are at `ENDED_AT` in the books."""
    ENDED_AT: ClassVar[int] = 32

    @staticmethod
    def begin(size: int) -> bytes:
        """Return what to write at `CALL_AT` for an input of `size` bytes, which is at `FIRST`."""
        room = block_size(size)
        fields = _BOOKS.pack(
            1 if size else 0, FIRST + room, FIRST if size else 0, size, 0, 0, 0, 0, 0, 0
        )
        if not size:
            return fields + _NO_HEADS
        return fields + _NO_HEADS + _ENTRY.pack(FIRST, room, size, _ACTIVE)

    @staticmethod
    def read(data: bytes | memoryview) -> CallBooks:
        """Return the fields of what was read at `CALL_AT`."""
        return CallBooks(*CallBooks.ENDED.unpack_from(data, CallBooks.ENDED_AT - CALL_AT))


_NO_HEADS: Final = bytes(4 * _CLASSES)
_ENTRY = struct.Struct("<IIIi")


def block_size(size: int) -> int:
    """Return how many bytes a block of `size` bytes takes in the memory."""
    return -(-size // 8) * 8


@frozen
class BlockFunction:
    """A host function whose values are numbers and blocks, as a plugin imports it."""

    export: str
    """Name by which the kernel exports it."""
    params: tuple[str, ...]
    """Types of wasm, or `BLOCK`."""
    results: tuple[str, ...]
    http: bool = False
    """Whether it answers `http_request`: the result is a block; a status and a block of headers may
    follow, for `http_status_code` and `http_headers`."""


@frozen
class KernelSettings:
    """What differs from one kernel to another."""

    config: tuple[tuple[bytes, bytes], ...] = ()
    """Keys, each once, and values."""
    vars: tuple[tuple[bytes, bytes], ...] = ()
    log_level: int = OFF
    """The lowest level that reaches the host; the number of one of `LOG_LEVELS`, or `OFF`."""
    functions: tuple[BlockFunction, ...] = ()

    @property
    def vars_cost(self) -> int:
        """Bytes of the variables, as Extism counts them."""
        return sum(VAR_COST + len(key) + len(value) for key, value in self.vars)


@functools.lru_cache(maxsize=64)
def kernel(settings: KernelSettings) -> bytes:
    """Return the kernel for these settings.

    Its imports are of the module ``host``: `fail` (reason, two numbers) for a trap, `log` (level,
    address, size), `call:N` for function N of the settings, and `deliver` (result, address) for
    the content of a block that it returned. For a block, `call:N` takes address and size, and
    returns a size; -1 for none.
    """
    config, vars = _entries(settings.config), _entries(settings.vars)
    table_end = _TABLE + _BLOCK_SIZE * _FIRST_CAPACITY
    least = table_end + len(config) + len(vars)
    # Without config and variables, the least that may grow into is a table of all blocks.
    most = _TABLE + _BLOCK_SIZE * MAX_BLOCKS + len(config) + max(VARS_LIMIT, len(vars))
    books = f"{-(-least // WASM_PAGE)} {-(-most // WASM_PAGE)}"
    fields = struct.pack(
        "<4I", _FIRST_CAPACITY, len(config), len(vars), settings.vars_cost
    ) + CallBooks.begin(0)
    text = _TEXT.format(books=books, imports=_imports(settings), more=_functions(settings))
    return assemble(
        text, [(1, 0, fields), (1, table_end, config + vars)][: 1 + (least > table_end)]
    )


def _entries(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(
        len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little") + key + value
        for key, value in items
    )


def _imports(settings: KernelSettings) -> str:
    lines = []
    for number, function in enumerate(settings.functions):
        params = " ".join("i64 i64" if kind == BLOCK else kind for kind in function.params)
        results = " ".join("i64" if kind == BLOCK else kind for kind in function.results)
        lines.append(
            f'(import "host" "call:{number}" (func $call:{number} (param {params})'
            f" (result {results})))"
        )
    return "\n".join(lines)


def _functions(settings: KernelSettings) -> str:
    given = {function.export for function in settings.functions}
    parts = [_adapter(number, one) for number, one in enumerate(settings.functions)]
    for level, name in enumerate(LOG_LEVELS):
        if f"log_{name}" not in given:
            body = _LOG if level >= settings.log_level else _NO_LOG
            parts.append(body.format(name=name, level=level))
    parts += [text for name, text in _REPLACEABLE.items() if name not in given]
    return "\n".join(parts).replace("LOG_LEVEL", str(settings.log_level))


def _adapter(number: int, function: BlockFunction) -> str:
    """Return a function that passes the addresses and sizes of blocks to the host, and gets back
    sizes, for each of which it makes a block for the host to fill."""
    results = function.results[: 1 if function.http else None]
    wasm = [{BLOCK: "i64"}.get(kind, kind) for kind in function.params]
    lines = [f'(func $given:{number} (export "{function.export}")']
    lines += [f"(param $p{at} {kind})" for at, kind in enumerate(wasm)]
    if results:
        lines.append("(result " + " ".join({BLOCK: "i64"}.get(k, k) for k in results) + ")")
    lines += [
        f"(local $r{at} {'i64' if kind == BLOCK else kind})"
        for at, kind in enumerate(function.results)
    ]
    lines.append(f"(call $call:{number}")
    for at, kind in enumerate(function.params):
        lines.append(f"(local.get $p{at})")
        if kind == BLOCK:
            lines.append(f"(call $length (local.get $p{at}))")
    lines.append(")")
    lines += [f"(local.set $r{at})" for at in reversed(range(len(function.results)))]
    lines += [
        f"(local.set $r{at} (call $delivered (i32.const {at}) (local.get $r{at})))"
        for at, kind in enumerate(function.results)
        if kind == BLOCK
    ]
    if function.http:
        stores = [("i32.store", _STATUS), ("i32.store", _HEADERS)]
        for at, (store, field) in enumerate(stores, start=1):
            value = f"(local.get $r{at})" if at < len(function.results) else "(i32.const 0)"
            if at == 2 and at < len(function.results):
                value = f"(i32.wrap_i64 {value})"
            lines.append(f"({store} $books offset={field} (i32.const 0) {value})")
    lines += [f"(local.get $r{at})" for at in range(len(results))]
    return "\n".join(lines) + ")"


def _field(at: int) -> str:
    return f"(i32.load $books offset={at} (i32.const 0))"


def _set(at: int, value: str) -> str:
    return f"(i32.store $books offset={at} (i32.const 0) {value})"


_LOG = """
  (func $log_{name} (export "log_{name}") (param $p i64) (local $n i64)
    (local.set $n (call $length (local.get $p)))
    ;; The block may have been logged, and thereby freed: that ends no call at other levels either.
    (if (i64.lt_u (local.get $n) (i64.extend_i32_u (i64.ne (local.get $p) (i64.const 0)))) (then
      (return)))
    (call $log (i32.const {level}) (local.get $p) (local.get $n))
    (call $free (local.get $p)))"""
_NO_LOG = """
  (func $log_{name} (export "log_{name}") (param $p i64)
    (call $free (local.get $p)))"""
# {name: function} that an application may give itself.
_REPLACEABLE = {
    "get_log_level": """
  (func $get_log_level (export "get_log_level") (result i32) (i32.const LOG_LEVEL))""",
    "http_request": f"""
  (func $http_request (export "http_request") (param $p i64) (param $body i64) (result i64)
    (local $n i64)
    (local.set $n (call $length (local.get $p)))
    (if (i64.lt_u (local.get $n) (i64.extend_i32_u (i64.ne (local.get $p) (i64.const 0)))) (then
      (call $fail (i32.const {NO_BLOCK}) (i64.const 3) (local.get $p)) (unreachable)))
    (call $fail (i32.const {NO_HTTP}) (local.get $p) (local.get $n))
    (unreachable))""",
    "http_status_code": f"""
  (func $http_status_code (export "http_status_code") (result i32) {_field(_STATUS)})""",
    "http_headers": f"""
  (func $http_headers (export "http_headers") (result i64) (local $n i32) (local $to i64)
    (local.set $n (i32.wrap_i64 (call $length (i64.extend_i32_u {_field(_HEADERS)}))))
    (if (i32.eqz (local.get $n)) (then (return (i64.const 0))))
    (local.set $to (call $alloc (i64.extend_i32_u (local.get $n))))
    (memory.copy $blocks $blocks (i32.wrap_i64 (local.get $to)) {_field(_HEADERS)} (local.get $n))
    (local.get $to))""",
    "config_get": f"""
  (func $config_get (export "config_get") (param $key i64) (result i64)
    (call $value (local.get $key) (i32.const 0) (i32.const 0) {_field(_CONFIG_SIZE)}))""",
    "var_get": f"""
  (func $var_get (export "var_get") (param $key i64) (result i64)
    (call $value (local.get $key) (i32.const 1) {_field(_CONFIG_SIZE)}
      (i32.add {_field(_CONFIG_SIZE)} {_field(_VARS_SIZE)})))""",
    "var_set": f"""
  (func $var_set (export "var_set") (param $key i64) (param $value i64)
    (local $n i32) (local $m i32) (local $at i32) (local $end i32) (local $cost i32)
    (local.set $n (i32.wrap_i64 (call $length (local.get $key))))
    (if (i32.lt_u (local.get $n) (i64.ne (local.get $key) (i64.const 0))) (then
      (call $fail (i32.const {NO_BLOCK}) (i64.const 1) (local.get $key)) (unreachable)))
    (if (i64.ne (local.get $value) (i64.const 0)) (then
      (local.set $m (i32.wrap_i64 (call $length (local.get $value))))
      (if (i32.eqz (local.get $m)) (then
        (call $fail (i32.const {NO_BLOCK}) (i64.const 2) (local.get $value)) (unreachable)))
      (if (i64.gt_u
            (i64.add (i64.extend_i32_u {_field(_VARS_COST)})
              (i64.add (i64.const {VAR_COST})
                (i64.add (i64.extend_i32_u (local.get $n)) (i64.extend_i32_u (local.get $m)))))
            (i64.const {VARS_LIMIT}))
        (then
          (call $fail (i32.const {VARS_FULL}) (i64.extend_i32_u {_field(_VARS_COST)})
            (i64.add (i64.const {VAR_COST})
              (i64.add (i64.extend_i32_u (local.get $n)) (i64.extend_i32_u (local.get $m)))))
          (unreachable)))))
    ;; Remove the old value: move what follows it.
    (local.set $end (i32.add (call $entries)
      (i32.add {_field(_CONFIG_SIZE)} {_field(_VARS_SIZE)})))
    (local.set $at (call $find (i32.wrap_i64 (local.get $key)) (local.get $n)
      (i32.add (call $entries) {_field(_CONFIG_SIZE)}) (local.get $end)))
    (if (local.get $at) (then
      (local.set $cost (i32.add (i32.load $books (local.get $at))
        (i32.load $books offset=4 (local.get $at))))
      (memory.copy $books $books (local.get $at)
        (i32.add (i32.add (local.get $at) (i32.const 8)) (local.get $cost))
        (i32.sub (i32.sub (local.get $end) (i32.add (local.get $at) (i32.const 8)))
          (local.get $cost)))
      (local.set $end (i32.sub (local.get $end) (i32.add (local.get $cost) (i32.const 8))))
      {
        _set(
            _VARS_SIZE, f"(i32.sub {_field(_VARS_SIZE)} (i32.add (local.get $cost) (i32.const 8)))"
        )
    }
      {
        _set(
            _VARS_COST,
            f"(i32.sub {_field(_VARS_COST)} (i32.add (local.get $cost) (i32.const {VAR_COST})))",
        )
    }))
    (if (i64.ne (local.get $value) (i64.const 0)) (then
      (local.set $cost (i32.add (local.get $n) (local.get $m)))
      (call $grow_books (i32.add (local.get $end) (i32.add (local.get $cost) (i32.const 8))))
      (i32.store $books (local.get $end) (local.get $n))
      (i32.store $books offset=4 (local.get $end) (local.get $m))
      (memory.copy $books $blocks (i32.add (local.get $end) (i32.const 8))
        (i32.wrap_i64 (local.get $key)) (local.get $n))
      (memory.copy $books $blocks
        (i32.add (i32.add (local.get $end) (i32.const 8)) (local.get $n))
        (i32.wrap_i64 (local.get $value)) (local.get $m))
      {
        _set(
            _VARS_SIZE, f"(i32.add {_field(_VARS_SIZE)} (i32.add (local.get $cost) (i32.const 8)))"
        )
    }
      {
        _set(
            _VARS_COST,
            f"(i32.add {_field(_VARS_COST)} (i32.add (local.get $cost) (i32.const {VAR_COST})))",
        )
    }
      (call $free (local.get $value))))
    (call $free (local.get $key)))""",
}
REPLACEABLE: Final = (*_REPLACEABLE, *(f"log_{level}" for level in LOG_LEVELS))
"""Names of the functions that an application may give instead of the kernel's."""

# Above its memories, a function's parameters are called $p for an offset that the plugin gives.
_TEXT = f"""(module
  (import "host" "fail" (func $fail (param i32 i64 i64)))
  (import "host" "log" (func $log (param i32 i64 i64)))
  (import "host" "deliver" (func $deliver (param i32 i64)))
  {{imports}}
  (memory $blocks (export "memory") 1 {_MAX_PAGES})
  (memory $books (export "books") {{books}})

  ;; -- the table of blocks

  ;; Address in the table of the last block that begins at $p or before; 0 if there is none.
  (func $at_or_before (param $p i64) (result i32) (local $low i32) (local $high i32) (local $n i32)
    (local.set $high {_field(_COUNT)})
    (block $out (loop $next
      (br_if $out (i32.ge_u (local.get $low) (local.get $high)))
      (local.set $n (i32.shr_u (i32.add (local.get $low) (local.get $high)) (i32.const 1)))
      (if (i64.gt_u
            (i64.load32_u $books offset={_TABLE} (i32.shl (local.get $n) (i32.const 4)))
            (local.get $p))
        (then (local.set $high (local.get $n)))
        (else (local.set $low (i32.add (local.get $n) (i32.const 1)))))
      (br $next)))
    (if (i32.eqz (local.get $low)) (then (return (i32.const 0))))
    (i32.add (i32.const {_TABLE - _BLOCK_SIZE}) (i32.shl (local.get $low) (i32.const 4))))

  ;; Address in the table of the block that begins at $p and was not freed; 0 if there is none.
  (func $block (param $p i64) (result i32) (local $at i32)
    (local.set $at (call $at_or_before (local.get $p)))
    (if (i32.eqz (local.get $at)) (then (return (i32.const 0))))
    (if (i64.ne (i64.load32_u $books (local.get $at)) (local.get $p)) (then
      (return (i32.const 0))))
    (if (i32.ne (i32.load $books offset=12 (local.get $at)) (i32.const {_ACTIVE})) (then
      (return (i32.const 0))))
    (local.get $at))

  ;; Whether $n bytes from $p are inside a block.
  (func $inside (param $p i64) (param $n i64) (result i32) (local $at i32)
    (local.set $at (call $at_or_before (local.get $p)))
    (if (i32.eqz (local.get $at)) (then (return (i32.const 0))))
    ;; Neither has more than 32 bits, so that their sum is no less than each.
    (if (i64.gt_u (i64.or (local.get $p) (local.get $n)) (i64.const 0xffffffff)) (then
      (return (i32.const 0))))
    (i64.le_u (i64.add (local.get $p) (local.get $n))
      (i64.add (i64.load32_u $books (local.get $at))
        (i64.load32_u $books offset=4 (local.get $at)))))

  ;; The address of the config, which is behind the table.
  (func $entries (result i32)
    (i32.add (i32.const {_TABLE}) (i32.shl {_field(_CAPACITY)} (i32.const 4))))

  ;; Let the books have $end bytes, or end the call.
  (func $grow_books (param $end i32) (local $size i32)
    (local.set $size (i32.shl (memory.size $books) (i32.const 16)))
    (if (i32.le_u (local.get $end) (local.get $size)) (then (return)))
    (if (i32.eq (i32.const -1)
          (memory.grow $books
            (i32.shr_u (i32.add (i32.sub (local.get $end) (local.get $size)) (i32.const 65535))
              (i32.const 16))))
      (then
        (call $fail (i32.const {OUT_OF_MEMORY})
          (i64.extend_i32_u (i32.sub (local.get $end) (local.get $size)))
          (i64.extend_i32_u (local.get $size)))
        (unreachable))))

  ;; Make space in the table for twice as many blocks: config and variables move.
  (func $grow_table (local $old i32) (local $size i32) (local $more i32)
    (local.set $old (call $entries))
    (local.set $size (i32.add {_field(_CONFIG_SIZE)} {_field(_VARS_SIZE)}))
    (local.set $more {_field(_CAPACITY)})
    (if (i32.gt_u (local.get $more) (i32.sub (i32.const {MAX_BLOCKS}) (local.get $more))) (then
      (local.set $more (i32.sub (i32.const {MAX_BLOCKS}) (local.get $more)))))
    (if (i32.eqz (local.get $more)) (then
      (call $fail (i32.const {TOO_MANY_BLOCKS}) (i64.const {MAX_BLOCKS}) (i64.const 0))
      (unreachable)))
    (call $grow_books (i32.add (i32.add (local.get $old) (local.get $size))
      (i32.shl (local.get $more) (i32.const 4))))
    (memory.copy $books $books
      (i32.add (local.get $old) (i32.shl (local.get $more) (i32.const 4)))
      (local.get $old) (local.get $size))
    {_set(_CAPACITY, f"(i32.add {_field(_CAPACITY)} (local.get $more))")})

  ;; A freed block of $size bytes or more, out of its list; 0 if there is none. Of the list of its
  ;; own size, the first eight are looked at; any of the next list is large enough.
  (func $reuse (param $size i32) (result i32) (local $head i32) (local $link i32) (local $at i32)
    (local $tries i32)
    (local.set $head (i32.add (i32.const {_HEADS})
      (i32.shl (i32.sub (i32.const 31) (i32.clz (local.get $size))) (i32.const 2))))
    (local.set $link (local.get $head))
    (block $none (loop $next
      (local.set $at (i32.load $books (local.get $link)))
      (br_if $none (i32.eqz (local.get $at)))
      (local.set $at (i32.add (i32.const {_TABLE - _BLOCK_SIZE})
        (i32.shl (local.get $at) (i32.const 4))))
      (if (i32.ge_u (i32.load $books offset=4 (local.get $at)) (local.get $size)) (then
        (i32.store $books (local.get $link) (i32.load $books offset=12 (local.get $at)))
        (return (local.get $at))))
      (local.set $link (i32.add (local.get $at) (i32.const 12)))
      (local.set $tries (i32.add (local.get $tries) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $tries) (i32.const 8)))))
    (local.set $head (i32.add (local.get $head) (i32.const 4)))
    (if (i32.ge_u (local.get $head) (i32.const {_TABLE})) (then (return (i32.const 0))))
    (local.set $at (i32.load $books (local.get $head)))
    (if (i32.eqz (local.get $at)) (then (return (i32.const 0))))
    (local.set $at (i32.add (i32.const {_TABLE - _BLOCK_SIZE})
      (i32.shl (local.get $at) (i32.const 4))))
    (i32.store $books (local.get $head) (i32.load $books offset=12 (local.get $at)))
    (local.get $at))

  ;; -- blocks

  (func $alloc (export "alloc") (param $n i64) (result i64)
    (local $size i64) (local $end i64) (local $room i64) (local $at i32)
    (if (i64.eqz (local.get $n)) (then (return (i64.const 0))))
    (if (i64.gt_u (local.get $n) (i64.const 0xfffe0000)) (then
      (call $fail (i32.const {OUT_OF_MEMORY}) (local.get $n)
        (i64.shl (i64.extend_i32_u (memory.size $blocks)) (i64.const 16)))
      (unreachable)))
    (local.set $size (i64.and (i64.add (local.get $n) (i64.const 7)) (i64.const -8)))
    (local.set $end (i64.add (local.get $size) (i64.extend_i32_u {_field(_POSITION)})))
    (local.set $room (i64.shl (i64.extend_i32_u (memory.size $blocks)) (i64.const 16)))
    (if (i32.or (i64.gt_u (local.get $end) (local.get $room))
          (i32.eq {_field(_COUNT)} (i32.const {MAX_BLOCKS}))) (then
      (local.set $at (call $reuse (i32.wrap_i64 (local.get $size))))))
    (if (i32.eqz (local.get $at)) (then
      (if (i64.gt_u (local.get $end) (local.get $room)) (then
        (if (i32.eq (i32.const -1)
              (memory.grow $blocks (i32.wrap_i64
                (i64.shr_u (i64.add (i64.sub (local.get $end) (local.get $room))
                  (i64.const 65535)) (i64.const 16)))))
          (then
            (call $fail (i32.const {OUT_OF_MEMORY}) (local.get $n) (local.get $room))
            (unreachable)))))
      (if (i32.eq {_field(_COUNT)} {_field(_CAPACITY)}) (then (call $grow_table)))
      (local.set $at (i32.add (i32.const {_TABLE}) (i32.shl {_field(_COUNT)} (i32.const 4))))
      {_set(_COUNT, f"(i32.add {_field(_COUNT)} (i32.const 1))")}
      (i32.store $books (local.get $at) {_field(_POSITION)})
      (i32.store $books offset=4 (local.get $at) (i32.wrap_i64 (local.get $size)))
      {_set(_POSITION, "(i32.wrap_i64 (local.get $end))")}))
    (i32.store $books offset=8 (local.get $at) (i32.wrap_i64 (local.get $n)))
    (i32.store $books offset=12 (local.get $at) (i32.const {_ACTIVE}))
    (memory.fill $blocks (i32.load $books (local.get $at)) (i32.const 0)
      (i32.load $books offset=4 (local.get $at)))
    (i64.load32_u $books (local.get $at)))

  (func $free (export "free") (param $p i64) (local $at i32) (local $head i32)
    (local.set $at (call $block (local.get $p)))
    (if (i32.eqz (local.get $at)) (then (return)))
    (if (i64.eq (local.get $p) (i64.extend_i32_u {_field(_INPUT)})) (then
      {_set(_INPUT_SIZE, "(i32.const 0)")}))
    (if (i64.eq (local.get $p) (i64.extend_i32_u {_field(_ERROR)})) (then
      {_set(_ERROR, "(i32.const 0)")} {_set(_ERROR_SIZE, "(i32.const 0)")}))
    ;; The output is read when the call is over, freed or not.
    (if (i32.eq (local.get $at)
          (call $at_or_before (i64.extend_i32_u {_field(_OUTPUT)})))
      (then (i32.store $books offset=12 (local.get $at) (i32.const {_KEPT})) (return)))
    (local.set $head (i32.add (i32.const {_HEADS})
      (i32.shl (i32.sub (i32.const 31) (i32.clz (i32.load $books offset=4 (local.get $at))))
        (i32.const 2))))
    (i32.store $books offset=12 (local.get $at) (i32.load $books (local.get $head)))
    (i32.store $books (local.get $head)
      (i32.shr_u (i32.sub (local.get $at) (i32.const {_TABLE - _BLOCK_SIZE})) (i32.const 4))))

  (func $length (export "length") (param $p i64) (result i64) (local $at i32)
    (local.set $at (call $block (local.get $p)))
    (if (i32.eqz (local.get $at)) (then (return (i64.const 0))))
    (i64.load32_u $books offset=8 (local.get $at)))

  (func $length_unsafe (export "length_unsafe") (param $p i64) (result i64)
    (call $length (local.get $p)))

  (func $load_u8 (export "load_u8") (param $p i64) (result i32)
    (if (i64.ge_u (local.get $p) (i64.extend_i32_u {_field(_POSITION)})) (then
      (return (i32.const 0))))
    (i32.load8_u (i32.wrap_i64 (local.get $p))))

  ;; Behind the last block are zeros: the bytes before come from the last eight, shifted.
  (func $load_u64 (export "load_u64") (param $p i64) (result i64) (local $last i64)
    (if (i64.le_u (local.get $p)
          (i64.sub (i64.extend_i32_u {_field(_POSITION)}) (i64.const 8)))
      (then (return (i64.load (i32.wrap_i64 (local.get $p))))))
    (local.set $last (i64.sub (i64.extend_i32_u {_field(_POSITION)}) (i64.const 8)))
    (local.set $p (i64.sub (local.get $p) (local.get $last)))
    (if (i64.ge_u (local.get $p) (i64.const 8)) (then (return (i64.const 0))))
    (i64.shr_u (i64.load (i32.wrap_i64 (local.get $last)))
      (i64.shl (local.get $p) (i64.const 3))))

  (func $store_u8 (export "store_u8") (param $p i64) (param $byte i32)
    (if (i64.lt_u (i64.sub (local.get $p) (i64.const {FIRST}))
          (i64.sub (i64.extend_i32_u {_field(_POSITION)}) (i64.const {FIRST})))
      (then (i32.store8 (i32.wrap_i64 (local.get $p)) (local.get $byte)))))

  (func $store_u64 (export "store_u64") (param $p i64) (param $word i64)
    (if (i64.ge_u (i64.sub (local.get $p) (i64.const {FIRST}))
          (i64.sub (i64.extend_i32_u {_field(_POSITION)}) (i64.const {FIRST})))
      (then (return)))
    (if (i64.le_u (i64.add (local.get $p) (i64.const 8)) (i64.extend_i32_u {_field(_POSITION)}))
      (then (i64.store (i32.wrap_i64 (local.get $p)) (local.get $word)) (return)))
    ;; Up to the end of the last block.
    (loop $next
      (i32.store8 (i32.wrap_i64 (local.get $p)) (i32.wrap_i64 (local.get $word)))
      (local.set $word (i64.shr_u (local.get $word) (i64.const 8)))
      (local.set $p (i64.add (local.get $p) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $p) (i64.extend_i32_u {_field(_POSITION)})))))

  (func $memory_bytes (export "memory_bytes") (result i64)
    (i64.shl (i64.extend_i32_u (memory.size $blocks)) (i64.const 16)))

  ;; -- input, output, error

  (func $input_offset (export "input_offset") (result i64) (i64.extend_i32_u {_field(_INPUT)}))

  (func $input_length (export "input_length") (result i64)
    (i64.extend_i32_u {_field(_INPUT_SIZE)}))

  (func $input_load_u8 (export "input_load_u8") (param $at i64) (result i32)
    (if (i64.ge_u (local.get $at) (i64.extend_i32_u {_field(_INPUT_SIZE)})) (then
      (return (i32.const 0))))
    (i32.load8_u (i32.add {_field(_INPUT)} (i32.wrap_i64 (local.get $at)))))

  (func $input_load_u64 (export "input_load_u64") (param $at i64) (result i64)
    (if (i32.or
          (i64.ge_u (local.get $at) (i64.extend_i32_u {_field(_INPUT_SIZE)}))
          (i64.gt_u (i64.add (local.get $at) (i64.const 8))
            (i64.extend_i32_u {_field(_INPUT_SIZE)})))
      (then (return (i64.const 0))))
    (i64.load (i32.add {_field(_INPUT)} (i32.wrap_i64 (local.get $at)))))

  (func $input_set (export "input_set") (param $p i64) (param $n i64)
    (if (call $inside (local.get $p) (local.get $n)) (then
      {_set(_INPUT, "(i32.wrap_i64 (local.get $p))")}
      {_set(_INPUT_SIZE, "(i32.wrap_i64 (local.get $n))")})))

  (func $output_set (export "output_set") (param $p i64) (param $n i64)
    ;; Without a place there is no output to set, and the last one stays.
    (if (i64.eqz (local.get $p)) (then (return)))
    (if (i64.eqz (local.get $n))
      (then
        (if (i64.ge_u (i64.sub (local.get $p) (i64.const {FIRST}))
              (i64.sub (i64.extend_i32_u {_field(_POSITION)}) (i64.const {FIRST})))
          (then (return)))
        (local.set $p (i64.const 0)))
      (else
        (if (i32.eqz (call $inside (local.get $p) (local.get $n))) (then
          (call $fail (i32.const {OUTSIDE}) (local.get $p) (local.get $n)) (unreachable)))))
    {_set(_OUTPUT, "(i32.wrap_i64 (local.get $p))")}
    {_set(_OUTPUT_SIZE, "(i32.wrap_i64 (local.get $n))")})

  (func $output_offset (export "output_offset") (result i64)
    (i64.extend_i32_u {_field(_OUTPUT)}))

  (func $output_length (export "output_length") (result i64)
    (i64.extend_i32_u {_field(_OUTPUT_SIZE)}))

  (func $error_set (export "error_set") (param $p i64) (local $n i32)
    (local.set $n (i32.wrap_i64 (call $length (local.get $p))))
    (if (i32.eqz (local.get $n)) (then (local.set $p (i64.const 0))))
    {_set(_ERROR, "(i32.wrap_i64 (local.get $p))")}
    {_set(_ERROR_SIZE, "(local.get $n)")})

  (func $error_get (export "error_get") (result i64) (i64.extend_i32_u {_field(_ERROR)}))

  ;; Forget all blocks.
  (func $reset (export "reset")
    {_set(_COUNT, "(i32.const 0)")}
    {_set(_POSITION, f"(i32.const {FIRST})")}
    (memory.fill $books (i32.const {_INPUT}) (i32.const 0) (i32.const {_TABLE - _INPUT})))

  ;; -- config and variables

  ;; The address of the entry, among those from $at to $end, whose key has the $n bytes at $key; 0
  ;; if there is none.
  (func $find (param $key i32) (param $n i32) (param $at i32) (param $end i32) (result i32)
    (local $i i32)
    (block $none (loop $next
      (br_if $none (i32.ge_u (local.get $at) (local.get $end)))
      (block $other
        (br_if $other (i32.ne (i32.load $books (local.get $at)) (local.get $n)))
        (local.set $i (i32.const 0))
        (block $same (loop $byte
          (br_if $same (i32.ge_u (local.get $i) (local.get $n)))
          (br_if $other
            (i32.ne (i32.load8_u (i32.add (local.get $key) (local.get $i)))
              (i32.load8_u $books offset=8 (i32.add (local.get $at) (local.get $i)))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $byte)))
        (return (local.get $at)))
      (local.set $at (i32.add (i32.add (local.get $at) (i32.const 8))
        (i32.add (i32.load $books (local.get $at)) (i32.load $books offset=4 (local.get $at)))))
      (br $next)))
    (i32.const 0))

  ;; A block with the value of a key among the entries from $from to $to, counted from the first;
  ;; 0 if there is none, or it is empty.
  (func $value (param $key i64) (param $what i32) (param $from i32) (param $to i32) (result i64)
    (local $n i32) (local $at i32) (local $made i64)
    (local.set $n (i32.wrap_i64 (call $length (local.get $key))))
    (if (i32.lt_u (local.get $n) (i64.ne (local.get $key) (i64.const 0))) (then
      (call $fail (i32.const {NO_BLOCK}) (i64.extend_i32_u (local.get $what)) (local.get $key))
      (unreachable)))
    (local.set $at (call $find (i32.wrap_i64 (local.get $key)) (local.get $n)
      (i32.add (call $entries) (local.get $from)) (i32.add (call $entries) (local.get $to))))
    (call $free (local.get $key))
    (if (i32.eqz (local.get $at)) (then (return (i64.const 0))))
    ;; A new block may move the entries.
    (local.set $n (i32.add (i32.const 8) (i32.load $books (local.get $at))))
    (local.set $to (i32.load $books offset=4 (local.get $at)))
    (local.set $at (i32.sub (i32.add (local.get $at) (local.get $n)) (call $entries)))
    (local.set $made (call $alloc (i64.extend_i32_u (local.get $to))))
    (memory.copy $blocks $books (i32.wrap_i64 (local.get $made))
      (i32.add (call $entries) (local.get $at)) (local.get $to))
    (local.get $made))

  ;; -- the host

  ;; A block with the content of result $which of a host function, of $n bytes; 0 if there is none.
  (func $delivered (param $which i32) (param $n i64) (result i64) (local $made i64)
    (if (i64.le_s (local.get $n) (i64.const 0)) (then (return (i64.const 0))))
    (local.set $made (call $alloc (local.get $n)))
    (call $deliver (local.get $which) (local.get $made))
    (local.get $made))
  {{more}})"""
