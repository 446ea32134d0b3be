"""Three questions to a log of the cache, answered with polars, which reads it as it is.

python examples/ask_log.py wasmcache.jsonl     (without a log, examples/write_log.py makes one)
"""

import sys
import tempfile
from pathlib import Path

import polars as pl
from write_log import write_log


def wasted(log: pl.DataFrame) -> pl.DataFrame:
    """Which functions are loaded again because the cache was too small, and what does it cost?"""
    at = pl.col("at_seconds")
    instances = log.filter(pl.col("event").is_in(["wasmcache.loaded", "wasmcache.evicted"]))
    before = pl.col("reason", "at_seconds").shift().over("function", "group").name.prefix("last_")
    loads = instances.with_columns(before).filter(pl.col("last_reason") == "size")
    return (
        loads.group_by("function")
        .agg(
            loads=pl.len(),
            milliseconds=(pl.col("load_seconds").sum() * 1000).round(2),
            median_seconds_away=(at - pl.col("last_at_seconds")).median().round(3),
        )
        .sort("milliseconds", "function", descending=True)
    )


def waits(log: pl.DataFrame) -> pl.DataFrame:
    """How long does a lease take to get, with an instance at hand and without?"""
    milliseconds = pl.col("wait_seconds") * 1000
    leases = log.filter(pl.col("event") == "wasmcache.acquired").group_by("group", "hit")
    quantiles = {f"p{part}_ms": milliseconds.quantile(part / 100).round(3) for part in (50, 90, 99)}
    return leases.agg(leases=pl.len(), **quantiles).sort("group", "hit")


def rests(log: pl.DataFrame) -> pl.DataFrame:
    """How many hits would a shorter idle_timeout have cost?"""
    uses = log.filter(pl.col("event").is_in(["wasmcache.acquired", "wasmcache.recycled"]))
    rest = pl.col("at_seconds") - pl.col("at_seconds").shift().over("cache", "instance")
    hits = uses.with_columns(rest=rest).filter(pl.col("hit"))["rest"]
    timeouts = [0.005, 0.01, 0.02, 0.03]
    lost = [(hits > timeout).sum() for timeout in timeouts]
    return pl.DataFrame({"idle_timeout": timeouts, "hits_lost": lost, "of": len(hits)})


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/wasmcache.jsonl")
    if len(sys.argv) == 1:
        write_log(path)
    events = pl.read_ndjson(path, infer_schema_length=None).sort("cache", "seq")
    with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_rows=20):
        for question in (wasted, waits, rests):
            print(question.__doc__, question(events), sep="\n", end="\n\n")
