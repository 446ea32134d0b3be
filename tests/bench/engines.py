"""A million rows in each engine for data frames that is installed: a part of the suite `outside`.

Each engine calls a `WasmUDF`, a Python function of its own kind, and its native expression, in
turn, for the same rows. What is told is the best round: of the CPU time of the process, as threads
of engines wait for each other, or of the clock where the work is in other processes.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trio_wasmcache import CacheConfig
from trio_wasmcache.udf import WasmUDF

from .harness import Report

ADD = """(module (func (export "add") (param i64 i64) (result i64)
  (i64.add (local.get 0) (local.get 1))))"""
MILLION = 1_000_000
BATCH = 100_000
add = WasmUDF("add", ADD, args=("i64", "i64"), returns="i64")


def plus(a: int, b: int) -> int:
    """The same in Python."""
    return a + b


# What computes the sums of the first rows of the columns.
Sums = Callable[[int], Any]
# {what is measured: what computes, and the part of the rows that it computes}
Candidates = dict[str, tuple[Sums, float]]


def installed(*modules: str) -> bool:
    """Whether all of some modules can be imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def compare(
    report: Report, engine: str, candidates: Candidates, rows: int, rounds: int, clock: Any
) -> dict[str, float]:
    """Measure candidates in turn, and return {what: nanoseconds a row in its best round}."""
    best = dict.fromkeys(candidates, float("inf"))
    for sums, part in candidates.values():  # once in vain: what is imported, loaded, started
        sums(max(1, int(rows * part) // 100))
    for _ in range(rounds):
        for what, (sums, part) in candidates.items():
            number = max(1, int(rows * part))
            began = clock()
            sums(number)
            best[what] = min(best[what], (clock() - began) / number * 1e9)
    for what, taken in best.items():
        report.add(f"{engine}: {what}", taken, "ns/row")
    return best


@contextmanager
def in_duckdb(table: Any) -> Iterator[Candidates]:
    """A function in SQL, in vectors of 2,048 rows."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.register("given", table)
        connection.execute("CREATE TABLE t AS FROM given")
        i64 = "BIGINT"
        connection.create_function("wasm_add", add, [i64, i64], i64, type="arrow")
        connection.create_function("python_add", plus, [i64, i64], i64)

        def query(expression: str, n: int) -> None:
            connection.sql(f"SELECT sum({expression}) FROM t WHERE n < {n}").fetchall()

        def by_arrow(n: int) -> None:
            columns = connection.sql(f"SELECT a, b FROM t WHERE n < {n}").to_arrow_table()
            add(columns["a"], columns["b"])

        yield {
            "WasmUDF in SQL": (partial(query, "wasm_add(a, b)"), 1),
            "its Python UDF": (partial(query, "python_add(a, b)"), 0.25),
            "native": (partial(query, "a + b"), 1),
            "to Arrow, WasmUDF": (by_arrow, 1),
        }


@contextmanager
def in_polars(table: Any) -> Iterator[Candidates]:
    """Eagerly, in one batch."""
    import polars as pl

    frame: Any = pl.DataFrame(table)
    i64 = pl.Int64
    wasm = pl.map_batches(["a", "b"], add.polars, return_dtype=i64)
    python = pl.struct("a", "b").map_elements(lambda row: row["a"] + row["b"], return_dtype=i64)

    def select(expression: Any, n: int) -> None:
        frame.head(n).select(expression)

    yield {
        "WasmUDF": (partial(select, wasm), 1),
        "its Python UDF": (partial(select, python), 0.25),
        "native": (partial(select, pl.col("a") + pl.col("b")), 1),
    }


@contextmanager
def in_datafusion(table: Any) -> Iterator[Candidates]:
    """In batches of 8,192 rows."""
    import datafusion
    import pyarrow as pa

    def python(a: Any, b: Any) -> Any:
        return pa.array(map(plus, a.to_pylist(), b.to_pylist()), pa.int64())

    context, i64 = datafusion.SessionContext(), pa.int64()
    context.from_arrow(table, "t")
    for name, function in (("wasm_add", add), ("python_add", python)):
        context.register_udf(datafusion.udf(function, [i64, i64], i64, "volatile", name))

    def query(expression: str, n: int) -> None:
        context.sql(f"SELECT sum({expression}) FROM t WHERE n < {n}").collect()

    yield {
        "WasmUDF": (partial(query, "wasm_add(a, b)"), 1),
        "its Python UDF": (partial(query, "python_add(a, b)"), 0.25),
        "native": (partial(query, "a + b"), 1),
    }


@contextmanager
def in_daft(table: Any) -> Iterator[Candidates]:
    """In this process."""
    import daft

    i64 = daft.DataType.int64()
    a, b = daft.col("a"), daft.col("b")

    @daft.func.batch(return_dtype=i64)
    def wasm(a: Any, b: Any) -> Any:
        return add(a.to_arrow(), b.to_arrow())

    python = daft.func(plus, return_dtype=i64)

    def select(expression: Any, n: int) -> None:
        daft.from_arrow(table.slice(0, n)).select(expression.alias("c")).collect()

    yield {
        "WasmUDF": (partial(select, wasm(a, b)), 1),
        "its Python UDF": (partial(select, python(a, b)), 0.05),
        "native": (partial(select, a + b), 1),
    }


@contextmanager
def in_dask(table: Any) -> Iterator[Candidates]:
    """In this process, in partitions of 100,000 rows."""
    import dask.dataframe as dd

    frame = table.to_pandas()
    meta = {"a": "int64", "b": "int64", "n": "int64", "c": "int64"}

    def compute(function: Any, n: int) -> None:
        parts = dd.from_pandas(frame.head(n), chunksize=BATCH)
        parts.map_partitions(function, meta=meta).c.sum().compute(scheduler="sync")

    yield {
        "WasmUDF": (partial(compute, add.on("a", "b", into="c")), 1),
        "its Python UDF": (partial(compute, _applied), 0.02),
        "native": (partial(compute, _assigned), 1),
    }


def _applied(frame: Any) -> Any:
    return frame.assign(c=frame.apply(lambda row: row.a + row.b, axis=1).astype("int64"))


def _assigned(frame: Any) -> Any:
    return frame.assign(c=frame.a + frame.b)


@contextmanager
def in_spark(table: Any) -> Iterator[Candidates]:
    """By `mapInArrow`, in one worker."""
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, udf

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    on = add.on("a", "b", into="c")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    with builder.getOrCreate() as session:
        session.sparkContext.setLogLevel("ERROR")
        frame = session.createDataFrame(table).cache()
        frame.count()
        python = udf(plus, "long")

        def total(made: Any) -> None:
            made.agg({"c": "sum"}).collect()

        def wasm(n: int) -> None:
            schema = "a long, b long, n long, c long"
            total(frame.where(col("n") < n).mapInArrow(lambda batches: map(on, batches), schema))

        def adding(function: Any, n: int) -> None:
            total(frame.where(col("n") < n).withColumn("c", function(col("a"), col("b"))))

        yield {
            "WasmUDF": (wasm, 1),
            "its Python UDF": (partial(adding, python), 1),
            "native": (partial(adding, operator.add), 1),
        }


@contextmanager
def in_ray(table: Any) -> Iterator[Candidates]:
    """By an actor of Ray Core that stays, in batches of 100,000 rows."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import ray

    class Adding:
        def wasm(self, part: Any) -> Any:
            return add(part["a"], part["b"])

        def python(self, part: Any) -> Any:
            return pa.array(map(plus, part["a"].to_pylist(), part["b"].to_pylist()), pa.int64())

        def native(self, part: Any) -> Any:
            return pc.add(part["a"], part["b"])

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor = ray.remote(Adding).remote()

        def compute(method: Any, n: int) -> None:
            parts = [table.slice(at, min(BATCH, n - at)) for at in range(0, n, BATCH)]
            ray.get([method.remote(part) for part in parts])

        yield {
            "WasmUDF": (partial(compute, actor.wasm), 1),
            "its Python UDF": (partial(compute, actor.python), 0.25),
            "native": (partial(compute, actor.native), 1),
        }
    finally:
        ray.shutdown()


ENGINES: dict[str, tuple[Any, tuple[str, ...], Any]] = {
    "polars": (in_polars, ("polars",), time.process_time),
    "DuckDB": (in_duckdb, ("duckdb",), time.process_time),
    "DataFusion": (in_datafusion, ("datafusion",), time.process_time),
    "Daft": (in_daft, ("daft",), time.process_time),
    "Dask": (in_dask, ("dask", "pandas"), time.process_time),
    "Ray": (in_ray, ("ray",), time.monotonic),
    "Spark": (in_spark, ("pyspark", "pandas"), time.monotonic),
}
# DuckDB's vectors are small, and each crosses to the cache's thread.
BARS = {"DuckDB": ("WasmUDF in SQL", 0.8)}


def bench_engines(report: Report, rows: int, rounds: int, names: tuple[str, ...]) -> None:
    """The same sums in this process by hand, and in engines."""
    import pyarrow as pa
    import pyarrow.compute as pc

    a, b = range(rows), range(rows, 0, -1)
    table = pa.table({"a": a, "b": b, "n": a}, schema=pa.schema([(n, pa.int64()) for n in "abn"]))
    columns = table["a"].combine_chunks(), table["b"].combine_chunks()
    lists = [*a], [*b]
    by_hand: Candidates = {
        "WasmUDF": (lambda n: add(columns[0][:n], columns[1][:n]), 1),
        "loop in Python": (lambda n: [*map(plus, lists[0][:n], lists[1][:n])], 1),
        "pyarrow.compute": (lambda n: pc.add(columns[0][:n], columns[1][:n]), 1),
    }
    compare(report, "Arrow", by_hand, rows, rounds, time.process_time)
    for name in names:
        engine, modules, clock = ENGINES[name]
        if not installed(*modules) or (name == "Spark" and shutil.which("java") is None):
            print(f"{name} is not installed")
            continue
        with engine(table) as candidates:
            best = compare(report, name, candidates, rows, rounds, clock)
        what, bar = BARS.get(name, ("WasmUDF", None))
        ratio = best[what] / best["its Python UDF"]
        report.add(f"{name}: {what} / its Python UDF", ratio, "", at_most=bar)
    add.close()


# -- processes


def _batch(udf: WasmUDF, columns: tuple[Any, Any]) -> int:
    return len(udf(*columns))


def bench_processes(report: Report, rows: int, rounds: int) -> None:
    """Batches in one and in two processes, and how often they found an instance."""
    import pyarrow as pa

    size = max(1, rows // 10)
    columns = pa.array(range(size), pa.int64()), pa.array(range(size), pa.int64())
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            logs = Path(folder, str(number))
            config = CacheConfig(cache_dir=Path(folder, "code"))
            udf = WasmUDF(
                "add", ADD, args=("i64", "i64"), returns="i64", config=config, log_dir=logs
            )
            seconds = []
            with ProcessPoolExecutor(number, get_context("spawn")) as pool:
                for _ in range(rounds + 1):  # the first one starts them
                    began = time.monotonic()
                    list(pool.map(_batch, [udf] * 10, [columns] * 10))
                    seconds.append(time.monotonic() - began)
            taken[number] = min(seconds[1:])
            closed = [json.loads(log.read_text().splitlines()[-1]) for log in logs.iterdir()]
            hits, misses = (sum(one[what] for one in closed) for what in ("hits", "misses"))
            what = f"{number} process{'es' if number > 1 else ''}"
            report.add(f"{what}: batches of {size:,} rows", taken[number] / size * 1e8, "ns/row")
            report.add(f"{what}: the first time, also started", seconds[0], "s")
            report.add(f"{what}: hits of {hits + misses} leases", hits / (hits + misses), "")
    report.add("2 processes / 1 process", taken[2] / taken[1], "")
