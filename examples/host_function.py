"""A guest calls the application: an async Python function, awaited while the guest is suspended.

`order_price` (udfs/price.c) knows the discount, but has to ask for the price of a piece.
"""

from pathlib import Path

import structlog
import trio

from trio_wasmcache import HostFunction, open_cache

PRICE = Path(__file__).parent / "udfs" / "price.wasm"
CENTS = {1: 250, 2: 1999, 3: 120_000}


async def unit_price(product: int) -> int:
    await trio.sleep(0.2)  # stands for a query to a database
    return CENTS[product]


async def main() -> None:
    async with open_cache() as cache:
        order_price = await cache.register(
            "order_price",
            PRICE,
            args=("i64", "i64"),
            returns="i64",
            imports={"shop": {"unit_price": HostFunction(unit_price, ("i64",), ("i64",))}},
            concurrency=5,
        )
        prices: dict[tuple[int, int], int] = {}

        async def order(product: int, pieces: int) -> None:
            prices[product, pieces] = await order_price.call(product, pieces)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for product, pieces in ((1, 1), (1, 10), (1, 100), (2, 3), (3, 1)):
                nursery.start_soon(order, product, pieces)
        seconds = trio.current_time() - began

        for (product, pieces), cents in sorted(prices.items()):
            print(f"{pieces:3} of product {product}: {cents / 100:8.2f}")
        print(f"5 guests waited 0.2 s each, all at once: {seconds:.1f} s in total")

        # What the Python function raises comes out of the call as it is.
        try:
            await order_price.call(4, 1)
        except KeyError as error:
            print(f"No price of product {error}: the call raised KeyError")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
