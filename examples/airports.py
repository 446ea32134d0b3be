"""Which two international airports are the farthest apart? A C function measures every pair.

The UDF is `udfs/distance.c`, the airports are those of the `vega_datasets` package.
"""

import csv
import itertools
import math
from pathlib import Path

import structlog
import trio
from vega_datasets import data

import trio_wasmcache

DISTANCE = Path(__file__).parent / "udfs" / "distance.wasm"


def read_airports() -> list[tuple[str, float, float]]:
    with Path(data.airports.filepath).open(encoding="utf-8", newline="") as file:
        return [
            (f"{row['name']} ({row['iata']})", float(row["latitude"]), float(row["longitude"]))
            for row in csv.DictReader(file)
            if "International" in row["name"]
        ]


def python_distance(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    half = math.sin((lon2 - lon1) / 2) ** 2 * math.cos(lat1) * math.cos(lat2)
    return 2 * 6371.0088 * math.asin(math.sqrt(math.sin((lat2 - lat1) / 2) ** 2 + half))


async def main() -> None:
    airports = read_airports()
    pairs = list(itertools.combinations(airports, 2))
    async with trio_wasmcache.open_cache() as cache:
        await cache.register("distance", DISTANCE, args=("f64",) * 4, returns="f64")
        async with cache.acquire("distance", ("f64",) * 4) as distance:
            began = trio.current_time()
            measured = [(await distance.call(*a[1:], *b[1:]), a, b) for a, b in pairs]
            seconds = trio.current_time() - began

    print(f"{len(airports)} international airports, {len(pairs)} pairs")
    for title, (km, a, b) in (("Farthest", max(measured)), ("Nearest", min(measured))):
        print(f"{title}: {a[0]} and {b[0]}, {km:.1f} km")
    error = max(abs(km - python_distance(*a[1:], *b[1:])) for km, a, b in measured)
    assert error < 1e-6, f"the UDF and Python differ by {error} km"
    print("Python's math agrees on every pair, to the millimetre")
    print(f"({seconds / len(pairs) * 1e6:.1f} microseconds a call)")


if __name__ == "__main__":
    # The cache tells what it does through structlog; here only warnings would be of interest.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
