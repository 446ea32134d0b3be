"""One function in seven engines for data frames: copy the lines of yours.

python examples/engines.py                 # all that are installed
python examples/engines.py dask spark
"""

import importlib.util
import os
import sys

import pyarrow as pa

from trio_wasmcache.udf import WasmUDF

WASM = """(module (func (export "unit_price") (param $total i64) (param $units i64) (result i64)
  (i64.div_s (local.get $total) (local.get $units))))"""
# A row in which the guest fails has a null. A batch that takes a minute is stopped.
unit_price = WasmUDF(
    "unit_price", WASM, args=("i64", "i64"), returns="i64", on_error="null", timeout=60
)
ORDERS = pa.table({"total": [600, 700, 900], "units": [2, 0, 3]})


def with_duckdb(orders: pa.Table) -> list[int | None]:
    """The fast way: from a relation to an Arrow table, which DuckDB reads again."""
    import duckdb

    relation = duckdb.sql("SELECT total, units FROM orders WHERE total > 0")
    priced = unit_price.on("total", "units", into="price")(relation)
    return [price for (price,) in duckdb.from_arrow(priced).select("price").fetchall()]


def with_duckdb_function(orders: pa.Table) -> list[int | None]:
    """A function in SQL is called for vectors of 2,048 rows."""
    import duckdb

    with duckdb.connect() as connection:
        options = {"type": "arrow", "null_handling": "special"}
        i64 = "BIGINT"
        connection.create_function("unit_price", unit_price, [i64, i64], i64, **options)
        rows = connection.sql("SELECT unit_price(total, units) FROM orders").fetchall()
    return [price for (price,) in rows]


def with_polars(orders: pa.Table) -> list[int | None]:
    import polars as pl

    columns = ["total", "units"]
    price = pl.map_batches(columns, unit_price.polars, return_dtype=pl.Int64)
    return pl.DataFrame(orders).with_columns(price=price)["price"].to_list()


def with_datafusion(orders: pa.Table) -> list[int | None]:
    import datafusion

    context, i64 = datafusion.SessionContext(), pa.int64()
    context.from_arrow(orders, "orders")
    context.register_udf(datafusion.udf(unit_price, [i64, i64], i64, "immutable", "unit_price"))
    query = "SELECT unit_price(total, units) AS price FROM orders"
    return context.sql(query).to_pydict()["price"]


def with_dask(orders: pa.Table) -> list[int | None]:
    """Each worker process has a cache, which stays warm from one computation to the next."""
    import dask.dataframe as dd

    partitions = dd.from_pandas(orders.to_pandas(), npartitions=2)
    priced = partitions.map_partitions(unit_price.on("total", "units", into="price"))
    return pa.array(priced.compute()["price"]).to_pylist()


def with_daft(orders: pa.Table) -> list[int | None]:
    import daft

    @daft.func.batch(return_dtype=daft.DataType.int64())
    def price(total, units):
        return unit_price(total.to_arrow(), units.to_arrow())

    priced = daft.from_arrow(orders).select(
        price(daft.col("total"), daft.col("units")).alias("price")
    )
    return priced.to_pydict()["price"]


def with_spark(orders: pa.Table) -> list[int | None]:
    """Python's workers are used again, with their caches, by the queries that follow."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    from pyspark.sql import SparkSession

    price = unit_price.on("total", "units", into="price", error="error")

    def prices(batches):
        return map(price, batches)

    schema = "total long, units long, price long, error string"
    with SparkSession.builder.master("local[1]").getOrCreate() as session:
        priced = session.createDataFrame(orders).mapInArrow(prices, schema)
        return [row.price for row in priced.collect()]


ENGINES = {
    "duckdb": (with_duckdb, with_duckdb_function),
    "polars": (with_polars,),
    "datafusion": (with_datafusion,),
    "dask": (with_dask,),
    "daft": (with_daft,),
    "spark": (with_spark,),
}
MODULES = {"dask": "dask.dataframe", "spark": "pyspark"}


def installed(engine: str) -> bool:
    return importlib.util.find_spec(MODULES.get(engine, engine).partition(".")[0]) is not None


if __name__ == "__main__":
    for engine in sys.argv[1:] or filter(installed, ENGINES):
        for function in ENGINES[engine]:
            print(f"{function.__name__}: {function(ORDERS)}", flush=True)
