"""Parquet files in, prices out, on Ray Data: by actors whose caches stay warm, with one log of all.

python examples/ray_data.py FOLDER
python -m trio_wasmcache report FOLDER/logs/*.jsonl

On a cluster, each node has ray[data]>=2.60, this package and a `code` folder of its own.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache.udf import WasmUDF

WASM = """(module (func (export "unit_price") (param $total i64) (param $units i64) (result i64)
  (i64.div_s (local.get $total) (local.get $units))))"""
WORKERS = 2  # each is a process with a cache
GUESTS = 64 * MiB  # of each worker, idle or running
ROWS = 1000  # in a batch; some 100,000 if there are many
# Lost workers are replaced, and their batches run again. Batches for which a worker had no capacity
# are tried again; errors of guests would be the same again, so they never are.
RETRIED = [r"trio_wasmcache\.(CodeMemory|Deadlock)Error", "trio.ClosedResourceError"]


class UnitPrice:
    """What an actor runs: its cache is opened by the first batch, and is warm for all others."""

    def __init__(self, udf: WasmUDF) -> None:
        # A row in which the guest fails has a null, and the reason in a column of its own.
        self.price = udf.on("total", "units", into="price", error="error")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self.price(batch)


def run(folder: Path, step: type = UnitPrice) -> None:
    context = DataContext.get_current()
    context.retried_map_errors, context.max_map_retries = RETRIED, 3
    context.raise_original_map_exception = True  # a TrapError is one for the driver, too
    limits = CacheConfig(max_size=GUESTS, max_running_size=GUESTS, cache_dir=folder / "code")
    declared = {"args": ("i64", "i64"), "returns": "i64", "on_error": "null", "timeout": 60}
    udf = WasmUDF("unit_price", WASM, config=limits, log_dir=folder / "logs", **declared)
    orders = ray.data.read_parquet(str(folder / "orders"))
    pool = {"compute": ActorPoolStrategy(size=WORKERS), "num_cpus": 1}
    memory = 300 * MiB + 2 * GUESTS  # what a worker may take: Python, and its guests
    prices = orders.repartition(target_num_rows_per_block=ROWS).map_batches(
        step, fn_constructor_args=(udf,), batch_format="pyarrow", memory=memory, **pool
    )
    prices.write_parquet(str(folder / "prices"))


def main(folder: Path) -> None:
    (folder / "orders").mkdir(parents=True)
    for file in range(8):
        total, units = range(1000 * file, 1000 * file + 1000), [n % 100 for n in range(1000)]
        orders = pa.table({"total": total, "units": units})
        pq.write_table(orders, folder / f"orders/{file}.parquet")
    # A CPU more than for the actors, or nothing would be read. On a cluster: ray.init("auto").
    ray.init(num_cpus=WORKERS + 1, include_dashboard=False)
    run(folder)
    ray.shutdown()
    prices = pq.read_table(folder / "prices")
    failed = prices.filter(prices["error"].is_valid())
    print(f"{len(prices)} prices, {len(failed)} of them failed: {failed['error'][0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
