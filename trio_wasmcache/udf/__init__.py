"""Functions for data frames, databases and clusters, as values that engines pickle and call.

.. code-block::

    from trio_wasmcache.udf import WasmUDF

    add = WasmUDF("add", Path("add.wasm"), args=("i64", "i64"), returns="i64", timeout=60)
    table = add.on("a", "b", into="c")(table)

A `WasmUDF` is called with whole columns, in any thread of any process that has unpickled it. Each
process opens a cache at the first call, and keeps it warm. No engine is imported: each of them sees
a plain function. It builds on `trio_wasmcache.blocking`. The page ``README.md`` beside this file
says how to use it in polars, DuckDB, Ray, Dask and Spark.
"""

from __future__ import annotations

from .definition import BatchUDF as BatchUDF, WasmUDF as WasmUDF

__all__ = ["WasmUDF", "BatchUDF"]
