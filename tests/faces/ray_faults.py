"""Faults in the pipeline of `examples/ray_data.py`, and how often a batch runs: `test_engines`.

``python ray_faults.py FOLDER`` prints a line for each fault. All have one batch of ten rows.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray_data

from trio_wasmcache import CodeMemoryError, TrapError
from trio_wasmcache.udf import WasmUDF

strict = WasmUDF("unit_price", ray_data.WASM, args=("i64", "i64"), returns="i64")


def faulty(fault: str, runs: Path) -> type:
    """Return a step of the pipeline that fails."""

    class Faulty(ray_data.UnitPrice):
        def __call__(self, batch: pa.Table) -> pa.Table:
            with runs.open("a") as file:
                file.write(".")
            if runs.stat().st_size < 3:
                if fault == "lost":
                    os._exit(1)
                if fault == "room":
                    raise CodeMemoryError("no capacity")
            if fault == "trap":
                strict(batch["total"], batch["units"])
            return super().__call__(batch)

    return Faulty


def run(fault: str, folder: Path) -> str:
    (folder / "orders").mkdir(parents=True)
    orders = pa.table({"total": range(10), "units": [1, 2, 3, 0, 5, 6, 7, 8, 9, 10]})
    pq.write_table(orders, folder / "orders/0.parquet")
    try:
        ray_data.run(folder, faulty(fault, folder / "runs"))
        outcome = f"{len(pq.read_table(folder / 'prices'))} rows"
    except TrapError as error:
        outcome = f"TrapError row {error.row}"
    return f"{(folder / 'runs').stat().st_size} runs, {outcome}"


if __name__ == "__main__":
    ray.init(num_cpus=ray_data.WORKERS + 1, include_dashboard=False)
    for fault in ("lost", "room", "trap"):
        print(f"{fault}: {run(fault, Path(sys.argv[1], fault))}", flush=True)
    ray.shutdown()
