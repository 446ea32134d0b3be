"""Writes memory drivers: as `driver`, for functions whose values cross through the guest's memory.

A memory driver does for each row, without leaving wasm, the same as an ABI does for one call: it
lets the guest allocate memory, copies bytes from the scratch into the guest's memory, calls the
function, checks the result's address and size, copies the result into the scratch, and frees the
memory. It is written as text, which wasmtime turns into a module.

1. The scratch has cells of numbers like a driver's. A column of bytes consists of offsets into its
   data, 32 or 64 bits each, as in Arrow: the bytes of row n lie between the offsets n and n + 1.
2. Addresses and sizes from the guest are never trusted: a range outside its memory, or at address
   0, ends the loop at its row, with the reason in `why`, and the guest's values in `at` and `size`.
3. A result larger than the rest of the scratch ends the loop, too. The host reads it out of the
   guest's memory and runs the driver again from this row, for which the driver then only frees
   memory, before it continues with the next.
"""

from __future__ import annotations

import functools
from typing import Final

import attrs

from . import object_code
from .driver import CELLS
from .memory_layout import (
    ALLOCATED_OUTSIDE,
    AREA_MISALIGNED,
    AREA_OUTSIDE,
    AREA_SIZE,
    AT_AT,
    BASE_AT,
    BIAS,
    BYTES,
    FAILED,
    FIRST_AT,
    KEPT_AT,
    KEPT_SIZE,
    NO_OBJECT,
    NO_ROOM,
    OUTSIDE,
    PENDING_AT,
    RANGE,
    RAW_AT,
    READ_OUT,
    ROW_AT,
    SIZE_AT,
    STEP,
    WHY_AT,
    WIDTH,
    MemoryLayout,
    MemoryShape,
    scratch_of,
)
from .text import get, i32, load, misfits, put, read, store, write
from .types import FuncType


@functools.lru_cache(maxsize=256)
def memory_layout(shape: MemoryShape) -> MemoryLayout:
    """Return the layout of a shape, with its driver."""
    made = scratch_of(shape)
    text, fuel = _Writer(shape, made).module()
    return attrs.evolve(made, text=text, fuel_per_row=fuel)


INSIDE: Final = """
  (func $inside (param $at i32) (param $size i32) (result i32)
    (if (i32.and (i32.eqz (local.get $at)) (i32.ne (local.get $size) (i32.const 0)))
      (then (return (i32.const 0))))
    (i64.le_u (i64.add (i64.extend_i32_u (local.get $at)) (i64.extend_i32_u (local.get $size)))
      (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16))))"""
INSIDE_ANYWHERE: Final = """
  (func $inside (param $at i32) (param $size i32) (result i32)
    (i64.le_u (i64.add (i64.extend_i32_u (local.get $at)) (i64.extend_i32_u (local.get $size)))
      (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16))))"""
STOP: Final = f"""
  (func $stop (param $why i32) (param $at i32) (param $size i32)
    {write(WHY_AT, get("why"))} {write(AT_AT, get("at"))} {write(SIZE_AT, get("size"))})"""
NEXT: Final = put("row", f"(i32.add {get('row')} (i32.const 1))")


class _Writer:
    """Writes the text of one driver."""

    def __init__(self, shape: MemoryShape, layout: MemoryLayout) -> None:
        self.shape = shape
        self.layout = layout
        self.buffers = tuple(n for n, name in enumerate(shape.args) if name == BYTES)
        self.nul = int(shape.argument == "nul")
        # {argument: wasm types of its cells}
        cells = zip(self.buffers, shape.cells, strict=False)
        self.cells = {n: kinds for n, kinds in cells if kinds}

    def module(self) -> tuple[str, int]:
        """Return the text, and the fuel that a row burns at most."""
        shape, pages = self.shape, self.layout.pages
        helpers = {"inside": INSIDE_ANYWHERE if shape.canonical else INSIDE, "stop": STOP}
        parts = [_import("function", shape.signature)]
        if shape.alloc:
            parts.append(_import("alloc", FuncType(("i32",) * shape.alloc, ("i32",))))
            helpers["allocate"] = self._allocate()
        if shape.free:
            parts.append(_import("free", FuncType(("i32",) * shape.free, ())))
        if shape.post:
            parts.append(_import("post", FuncType(shape.signature.results)))
        if shape.argument == "object":
            parts += [_import(name, kind) for name, kind in object_code.imports(shape).items()]
            helpers |= object_code.helpers(shape)
        parts.append('(import "" "memory" (memory $guest 0))')
        parts.append(f'(memory $scratch (export "scratch") {pages} {pages})')
        run = self._run()
        text = "\n  ".join(("(module", *parts, *helpers.values(), run)) + ")"
        # Each instruction that burns a unit begins with a parenthesis.
        costs: dict[str, int] = {}
        for name, body in (*helpers.items(), ("run", run)):
            calls = (costs[one] * body.count(f"(call ${one} ") for one in costs)
            costs[name] = body.count("(") + sum(calls)
        return text, costs["run"]

    def _allocate(self) -> str:
        """Return a function that allocates 1 byte or more, or returns 0 and records why not.

        By the canonical ABI it allocates what it is asked for, and records why not beforehand.
        """
        size = get("size")
        values = {1: size, 2: f"{size} {i32(1)}", 4: f"{i32(0)} {i32(0)} {i32(1)} {size}"}
        if self.shape.canonical:
            return f"""
  (func $allocate (param $size i32) (result i32) (local $at i32)
    {put("at", f"(call $alloc {values[self.shape.alloc]})")}
    (if (i32.eqz (call $inside {get("at")} {size}))
      (then (call $stop {i32(ALLOCATED_OUTSIDE)} {get("at")} {size})))
    {get("at")})"""
        return f"""
  (func $allocate (param $size i32) (result i32) (local $at i32)
    {put("size", f"(select {size} {i32(1)} {size})")}
    {put("at", f"(call $alloc {values[self.shape.alloc]})")}
    (if (i32.eqz {get("at")})
      (then (call $stop {i32(NO_ROOM)} {i32(0)} {size}) (return {i32(0)})))
    (if (i32.eqz (call $inside {get("at")} {size}))
      (then (call $stop {i32(ALLOCATED_OUTSIDE)} {get("at")} {size}) (return {i32(0)})))
    {get("at")})"""

    def _run(self) -> str:
        names = ["row", "out", "at", "size", "base", "area", "mine"]
        names += [f"{what}{n}" for n in self.buffers for what in ("at", "size", "from", "in")]
        declared = " ".join(f"(local ${name} i32)" for name in names) + " (local $wide i64)"
        for n, name in enumerate(self.shape.results):
            if name != BYTES:
                declared += f" (local $result{n} {CELLS[name].wasm})"
        return f"""
  (func (export "run") (param $rows i32) (result i32) {declared}
    {write(WHY_AT, i32(0))}
    {put("row", read(FIRST_AT))}
    {self._resume() if self.shape.style else ""}
    (block $stopped
      (loop $next
        {write(ROW_AT, get("row"))}
        (block $over
          {"" if self.shape.passes_nulls else self._skip_null()}
          {self._sizes()}
          {self._rooms()}
          {self._copies()}
          {self._call()}
          {self._bytes() if self.shape.style else self._numbers()})
        {self._tidy()}
        {NEXT}
        (br_if $next (i32.lt_u {get("row")} {get("rows")}))))
    {get("row")})"""

    def _resume(self) -> str:
        """Return the code that ends a row whose result the host has read: it frees memory."""
        return f"""(if {read(PENDING_AT)} (then
      {write(ROW_AT, get("row"))}
      {put("mine", f"(i32.sub {read(PENDING_AT)} {i32(1)})")}
      {write(PENDING_AT, i32(0))}
      {put("at", read(AT_AT))} {put("size", read(SIZE_AT))}
      {put("wide", read(RAW_AT, what="i64.load"))}
      {self._give_back()}
      {self._tidy()}
      {NEXT}
      (if (i32.ge_u {get("row")} {get("rows")}) (then (return {get("row")})))))"""

    def _tidy(self) -> str:
        return "(call $tidy )" if self.shape.collects else ""

    def _valid(self, at: int) -> str:
        """Return an expression for the validity bit of this row."""
        byte = read(at, f"(i32.shr_u {get('row')} {i32(3)})", "i32.load8_u")
        return f"(i32.and (i32.shr_u {byte} (i32.and {get('row')} {i32(7)})) {i32(1)})"

    def _skip_null(self) -> str:
        clear = ""
        for name, at in zip(self.shape.results, self.layout.results, strict=True):
            if name == BYTES:
                clear += write(at, i32(-1), self._row(4))
            else:
                cell = CELLS[name]
                clear += write(at, f"({cell.wasm}.const 0)", self._row(cell.size), store(cell))
        valid = self._valid(self.layout.validity[0])
        return f"(if (i32.eqz {valid}) (then {clear} (br $over)))"

    def _row(self, size: int) -> str:
        """Return the offset of this row in a column of cells of that size."""
        shift = size.bit_length() - 1
        return f"(i32.shl {get('row')} {i32(shift)})" if shift else get("row")

    def _sizes(self) -> str:
        """Return the code that finds each argument's bytes in the scratch, and their size."""
        code = ""
        for number, n in enumerate(self.buffers):
            offsets, state = self.layout.args[n], self.layout.states[number]
            at = f"(i32.mul {get('row')} {read(state + STEP)})"
            end = read(offsets, f"(i32.add {at} {read(state + WIDTH)})")
            code += put(f"from{n}", read(offsets, at))
            code += put(f"size{n}", f"(i32.sub {end} {get(f'from{n}')})")
            code += put(f"from{n}", f"(i32.add {get(f'from{n}')} {read(state + BIAS)})")
        return code

    def _passed(self, number: int, code: str, otherwise: str = "") -> str:
        """Return `code`, made to run only if this argument of bytes is not null."""
        if not self.shape.passes_nulls:
            return code
        valid = self._valid(self.layout.validity[number])
        return f"(if {valid} (then {code}) (else {otherwise}))"

    def _rooms(self) -> str:
        """Return the code that finds addresses for the result's area and each argument of bytes."""
        shape, code = self.shape, ""
        if shape.argument == "object":
            return self._objects()
        if shape.allocation == "grown":
            code += put("base", read(BASE_AT))
            if shape.areas:
                code += put("area", get("base"))
                code += put("base", f"(i32.add {get('base')} {i32(AREA_SIZE)})")
        elif shape.areas:
            code += self._kept("area", len(self.buffers), i32(AREA_SIZE))
        for number, n in enumerate(self.buffers):
            if n in self.cells:
                continue
            size = f"(i32.add {get(f'size{n}')} {i32(self.nul)})" if self.nul else get(f"size{n}")
            if shape.allocation == "grown":
                one = put(f"at{n}", get("base")) + put("base", self._end(size))
            elif shape.allocation == "kept":
                one = self._kept(f"at{n}", number, size)
            else:
                one = put(f"at{n}", f"(call $allocate {size})")
                failed = read(WHY_AT) if shape.canonical else f"(i32.eqz {get(f'at{n}')})"
                one += f"(br_if $stopped {failed})"
            null = put(f"at{n}", i32(0)) + put(f"size{n}", i32(-1))
            code += self._passed(number, one, null)
        return code

    def _objects(self) -> str:
        """Return the code that makes an object of each argument of bytes, with its content."""
        code, last = "", len(self.buffers) - 1
        for number, n in enumerate(self.buffers):
            one = object_code.make(
                n, self.shape.views[number], read(self.layout.states[number] + KEPT_AT)
            )
            if number < last:
                one += f"(drop (call $pin {get(f'at{n}')}))"
            code += self._passed(number, one, put(f"at{n}", i32(0)))
        for number, n in enumerate(self.buffers[:-1]):
            code += self._passed(number, f"(call $unpin {get(f'at{n}')})")
        return code

    def _end(self, size: str) -> str:
        """Return the address of the next argument in grown memory; each takes at least 1 byte."""
        mask = self.shape.align - 1
        least = f"(select {size} {i32(1)} {size})"
        return f"(i32.add {get('base')} (i32.and (i32.add {least} {i32(mask)}) {i32(~mask)}))"

    def _kept(self, name: str, number: int, size: str) -> str:
        """Return the code that reuses memory kept from earlier rows, or reallocates it if small."""
        at, capacity = (self.layout.states[number] + one for one in (KEPT_AT, KEPT_SIZE))
        free = self._free(get("at"), get("size")) if self.shape.free else ""
        return f"""
          {put("size", f"(select {size} {i32(1)} {size})")}
          (if (i32.lt_u {read(capacity)} {get("size")}) (then
            {put("at", read(at))} {put("mine", get("size"))}
            (if {get("at")} (then
              {put("size", read(capacity))} {write(at, i32(0))} {write(capacity, i32(0))}
              {free}))
            {put("at", f"(call $allocate {get('mine')})")}
            (br_if $stopped (i32.eqz {get("at")}))
            {write(at, get("at"))} {write(capacity, get("mine"))}))
          {put(name, read(at))}"""

    def _copies(self) -> str:
        code = ""
        if self.shape.argument == "object":
            return code  # they were made with their content
        if self.shape.areas:
            for offset in (0, 8):
                code += f"(i64.store $guest offset={offset} {get('area')} (i64.const 0))"
        for number, n in enumerate(self.buffers):
            if n in self.cells:
                continue
            at, size = get(f"at{n}"), get(f"size{n}")
            one = f"(memory.copy $guest $scratch {at} {get(f'from{n}')} {size})"
            if self.nul:
                one += f"(i32.store8 $guest (i32.add {at} {size}) {i32(0)})"
            code += self._passed(number, one)
        return code

    def _call(self) -> str:
        """Return the call, whose results stay on the stack."""
        values = get("area") if self.shape.areas else ""
        for n, (name, column) in enumerate(zip(self.shape.args, self.layout.args, strict=True)):
            if name != BYTES:
                cell = CELLS[name]
                value = read(column, self._row(cell.size), load(cell))
                values += f"(i32.ne {value} {i32(0)})" if cell.truth else value
                continue
            if n in self.cells:
                for place, kind in enumerate(self.cells[n]):
                    values += read(8 * place, get(f"from{n}"), f"{kind}.load")
                continue
            at, size = get(f"at{n}"), get(f"size{n}")
            wide = f"(i64.shl (i64.extend_i32_s {size}) (i64.const 32))"
            values += {
                "pair": at + size,
                "nul": at,
                "object": at,
                "packed": f"(i64.or {wide} (i64.extend_i32_u {at}))",
            }[self.shape.argument]
        values += "".join(f"({kind}.const 0)" for kind in self.shape.defaults)
        told = "" if self.shape.count is None else f"(call $count {i32(self.shape.count)})"
        return f"{told} (call $function {values})"

    def _numbers(self) -> str:
        """Return the code that checks results and stores them in their columns."""
        cells = [CELLS[name] for name in self.shape.results]
        code = "".join(f"(local.set $result{n})" for n in reversed(range(len(cells))))
        for n, (cell, at) in enumerate(zip(cells, self.layout.results, strict=True)):
            value = get(f"result{n}")
            if cell.check:
                code += f"(if {misfits(cell, value)} (then "
                code += f"(call $stop {i32(RANGE)} {value} {i32(n)}) (br $stopped)))"
            elif cell.truth:
                value = f"(i32.ne {value} {i32(0)})"
            code += write(at, value, self._row(cell.size), store(cell))
        if self.shape.post:
            given = " ".join(get(f"result{n}") for n in range(len(cells)))
            code += f"(call $post {given})"
        return code

    def _bytes(self) -> str:
        """Return the code that checks the result's address and size, then copies its bytes out."""
        (sizes,) = self.layout.results
        at, size, out = get("at"), get("size"), get("out")
        pending = f"""(if (i32.gt_u {size} (i32.sub {i32(self.layout.out_size)} {out})) (then
            {write(PENDING_AT, f"(i32.add {get('mine')} {i32(1)})")}
            {write(RAW_AT, get("wide"), what="i64.store")}
            (call $stop {i32(READ_OUT)} {at} {size}) (br $stopped)))"""
        where = f"(i32.add {i32(self.layout.out)} {out})"
        return f"""
          {self._found(sizes)}
          (if {self._outside()} (then (call $stop {i32(OUTSIDE)} {at} {size}) (br $stopped)))
          {self._mine()}
          {pending}
          (memory.copy $scratch $guest {where} {at} {size})
          {put("out", f"(i32.add {out} {size})")}
          {write(sizes, size, self._row(4))}
          {self._give_back()}"""

    def _found(self, sizes: int) -> str:
        style, wide = self.shape.style, get("wide")
        low, high = f"(i32.wrap_i64 {wide})", f"(i32.wrap_i64 (i64.shr_u {wide} (i64.const 32)))"
        if style == "packed":
            return f"(local.set $wide) {put('at', high)} {put('size', low)}"
        if style == "packed_low":
            return f"(local.set $wide) {put('at', low)} {put('size', high)}"
        if style == "pair":
            return "(local.set $size) (local.set $at)"
        if style == "object":
            null = write(sizes, i32(-1), self._row(4))
            return f"""(local.set $at) (if (i32.eqz {get("at")}) (then {null} (br $over)))
          (local.set $wide (call $find {get("at")}))
          (if (i64.eq {wide} (i64.const -1))
            (then (call $stop {i32(NO_OBJECT)} {get("at")} {i32(0)}) (br $stopped)))
          {put("at", low)} {put("size", high)}"""
        if style == "cql":
            null = write(sizes, i32(-1), self._row(4))
            return f"""(local.set $wide) {put("at", low)} {put("size", high)}
          (if (i32.eq {get("size")} {i32(-1)}) (then {null} (br $over)))"""
        area = get("area")
        if style == "image":
            bytes_, align = self.shape.image
            return f"""(local.set $at) {put("size", i32(bytes_))}
          (if (i32.and {get("at")} {i32(align - 1)})
            (then (call $stop {i32(AREA_MISALIGNED)} {get("at")} {get("size")}) (br $stopped)))
          {put("wide", f"(i64.extend_i32_u {get('at')})")}"""
        code = "" if style == "out" else "(local.set $area)"
        if self.shape.canonical:
            code += f"""(if (i32.and {area} {i32(3)})
            (then (call $stop {i32(AREA_MISALIGNED)} {area} {i32(8)}) (br $stopped)))"""
        code += f"""
          (if (i32.eqz (call $inside {area} {i32(8)}))
            (then (call $stop {i32(AREA_OUTSIDE)} {area} {i32(8)}) (br $stopped)))
          {put("wide", f"(i64.extend_i32_u {area})")}"""
        if self.shape.flagged:
            code += f"""(if (i32.load $guest offset=12 {area})
            (then (call $stop {i32(FAILED)} {i32(0)} {i32(0)}) (br $stopped)))"""
        at, size = f"(i32.load $guest {area})", f"(i32.load $guest offset=4 {area})"
        return f"{code} {put('at', at)} {put('size', size)}"

    def _outside(self) -> str:
        outside = f"(i32.eqz (call $inside {get('at')} {get('size')}))"
        if self.shape.style == "cql":
            return f"(i32.or (i32.lt_s {get('size')} {i32(0)}) {outside})"
        return outside

    def _mine(self) -> str:
        """Return the code that determines whether the host has to free the result."""
        if not self.shape.frees:
            return ""
        mine = f"(i32.ne {get('at')} {i32(0)})"
        if self.shape.allocation != "guest":
            for n in self.buffers:
                within = f"(i32.lt_u (i32.sub {get('at')} {get(f'at{n}')}) {get(f'size{n}')})"
                mine = f"(i32.and {mine} (i32.eqz {within}))"
        return put("mine", mine)

    def _give_back(self) -> str:
        if self.shape.post:
            (kind,) = self.shape.signature.results
            raw = get("wide") if kind == "i64" else f"(i32.wrap_i64 {get('wide')})"
            return f"(call $post {raw})"
        if not self.shape.frees:
            return ""
        return f"(if {get('mine')} (then {self._free(get('at'), get('size'))}))"

    def _free(self, at: str, size: str) -> str:
        return f"(call $free {' '.join((at, size, i32(1))[: self.shape.free])})"


def _import(name: str, kind: FuncType) -> str:
    params, results = " ".join(kind.params), " ".join(kind.results)
    return f'(import "" "{name}" (func ${name} (param {params}) (result {results})))'
