"""Run batches in the fake engine: a driver that calls the module's Python function for each row."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from ..._core.config import WASM_PAGE
from ..._core.errors import FuelExhaustedError
from ..._core.wasm.driver import (
    CELLS,
    FIRST_AT,
    RAW_AT,
    ROW_AT,
    VALIDITY_AT,
    WHICH_AT,
    Cell,
    Layout,
    Shape,
    layout,
)
from ..._core.wasm.graph import FromPart
from ..base import UNDER_WAY, UnderWay, WasmValue
from .instance import FakeInstance

_WASM = {"i32": "i", "i64": "q", "f32": "f", "f64": "d"}


@frozen(eq=False)
class FakeDriverCode:
    """See `DriverCode`."""

    shape: Shape

    def attach(self, instance: FakeInstance, exports: Mapping[str, str | FromPart]) -> FakeDriver:
        key = self.shape, tuple(exports.items())
        driver = instance.drivers.get(key)
        if not isinstance(driver, FakeDriver):
            driver = FakeDriver(instance, self.shape)
            instance.add_driver(key, driver)
        return driver


@define(eq=False)
class FakeDriver:
    """See `GuestDriver`. Asserts that it is used as the protocol says."""

    instance: FakeInstance
    shape: Shape
    scratch: bytearray = field(init=False, repr=False)
    _rows: int = 0
    _row: int = 0
    _row_burnt: float = 0
    _error: Exception | None = None

    def __attrs_post_init__(self) -> None:
        self.scratch = bytearray(self.layout.pages * WASM_PAGE)

    @property
    def layout(self) -> Layout:
        return layout(self.shape)

    def put(self, at: int, data: bytes | memoryview) -> None:
        assert not self.instance.closed and not self.instance.polling
        assert 0 <= at <= at + len(data) <= len(self.scratch)
        self.scratch[at : at + len(data)] = data

    def get(self, at: int, size: int) -> memoryview:
        assert not self.instance.closed and not self.instance.polling
        assert 0 <= at <= at + size <= len(self.scratch)
        return memoryview(self.scratch)[at : at + size]

    def begin(self, rows: int, fuel: int) -> int | UnderWay:
        assert 0 < rows <= self.layout.rows
        (first,) = struct.unpack_from("<I", self.scratch, FIRST_AT)
        assert first < rows
        self._rows, self._row, self._row_burnt, self._error = rows, first, 0, None
        self.instance.begin_rows(self, fuel)
        return self.finish() if self.instance.poll() else UNDER_WAY

    def abridge(self, codes: frozenset[str]) -> None:
        """Do nothing: its errors have no frames."""

    def finish(self) -> int:
        self.instance.end_rows()
        if self._error is not None:
            raise self._error
        return self._row

    def run(self, slice_fuel: int) -> bool:
        """Run one slice of the rows; return True when they are over."""
        instance = self.instance
        behaviour = instance.module.behaviour
        while self._row < self._rows:
            self._write(ROW_AT, "I", self._row)
            if not self._valid():
                for cell, at in self._cells(results=True):
                    self._write(at, cell.code, 0)
                self._row += 1
                continue
            values = self._values()
            if not instance.ask_host(values):
                return False
            spent = instance.burn(min(behaviour.fuel - self._row_burnt, slice_fuel))
            self._row_burnt += spent
            slice_fuel -= spent
            if self._row_burnt < behaviour.fuel:
                if not instance.fuel_left():
                    self._error = FuelExhaustedError("all fuel is burnt")
                return not instance.fuel_left()
            try:
                result = instance.result(values)
            except Exception as error:
                self._error = error
                return True
            if not self._store(result):
                return True
            self._row, self._row_burnt = self._row + 1, 0
        return True

    def wipe(self) -> None:
        """Forget what lies in the scratch."""
        self.scratch[:] = bytes(len(self.scratch))

    def _valid(self) -> bool:
        byte = self.scratch[VALIDITY_AT + self._row // 8]
        return not self.shape.nullable or bool(byte >> self._row % 8 & 1)

    def _cells(self, *, results: bool) -> list[tuple[Cell, int]]:
        """Return [(cell, where that of this row lies)]."""
        names, places = self.shape.args, self.layout.args
        if results:
            names, places = self.shape.results, self.layout.results
        return [
            (CELLS[name], at + self._row * CELLS[name].size)
            for name, at in zip(names, places, strict=True)
        ]

    def _values(self) -> tuple[WasmValue, ...]:
        """Return the row's arguments, as wasm numbers."""
        values = []
        for cell, at in self._cells(results=False):
            (value,) = struct.unpack_from("<" + cell.code, self.scratch, at)
            if cell.code in "IQ":
                (value,) = struct.unpack(
                    "<" + _WASM[cell.wasm], struct.pack("<" + cell.code, value)
                )
            values.append(int(value) if cell.truth else value)
        return tuple(values)

    def _store(self, result: Any) -> bool:
        """Put the results in their columns; return whether they are in range."""
        cells = self._cells(results=True)
        results = result if len(cells) != 1 else (result,)
        for number, ((cell, at), value) in enumerate(zip(cells, results or (), strict=True)):
            raw = struct.pack("<" + _WASM[cell.wasm], value)
            cut = struct.unpack_from("<" + cell.code, raw)[0]
            if cell.check and cut != value:
                self._write(WHICH_AT, "I", number)
                self._write(RAW_AT, "i", value)
                return False
            self._write(at, cell.code, cut if not cell.truth else value != 0)
        return True

    def _write(self, at: int, code: str, value: WasmValue) -> None:
        struct.pack_into("<" + code, self.scratch, at, value)
