"""One FastAPI app for two servers: under Trio there is no hop, under asyncio `aio` makes it.

hypercorn --worker-class trio examples/fastapi_service:app
uvicorn --app-dir examples fastapi_service:app
"""

import contextlib
from typing import Annotated, Literal

import anyio
import structlog
import trio
from fastapi import FastAPI, HTTPException, Query, Request

import trio_wasmcache
from trio_wasmcache import CacheConfig, GuestError, HostFunction, aio

WASM = """(module
  (import "app" "rate" (func $rate (param i64) (result i64)))
  (func (export "price") (param $cents i64) (param $country i64) (result i64)
    (i64.div_s (i64.mul (local.get $cents) (call $rate (local.get $country))) (i64.const 100)))
  (func (export "forever") (loop (br 0))))"""
RATES = {0: 100, 1: 250}
LOG = structlog.wrap_logger(
    structlog.WriteLogger(), processors=[structlog.processors.JSONRenderer()]
)


async def rate(country: int) -> int:
    """A host function: on the loop of its caller, whichever that is."""
    await anyio.sleep(0.001)  # a query
    return RATES.get(country, 0)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    """Hold a cache open while the server runs."""
    module = trio_wasmcache if trio.lowlevel.in_trio_task() else aio
    async with module.open_cache(CacheConfig(total_fuel=10**12), logger=LOG) as cache:
        imports = {"app": {"rate": HostFunction(rate, ("i64",), ("i64",))}}
        price = {"args": ("i64", "i64"), "returns": "i64", "concurrency": 4}
        app.state.price = await cache.register("price", WASM, imports=imports, **price)
        app.state.forever = await cache.register("forever", WASM, imports=imports, args=())
        yield


app = FastAPI(lifespan=lifespan)


I64 = Annotated[int, Query(ge=-(2**63), lt=2**63)]
Seconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]


@app.get("/{name}")
async def call(
    request: Request,
    name: Literal["price", "forever"],
    cents: I64 = 0,
    country: I64 = 0,
    seconds: Seconds = 30,
):
    """Call a function, for at most that many seconds."""
    function = getattr(request.app.state, name)
    try:
        with anyio.fail_after(min(seconds, 30)):
            return {"result": await function.call(*((cents, country) if name == "price" else ()))}
    except TimeoutError as error:
        raise HTTPException(504, f"the function was stopped after {seconds:g} seconds") from error
    except GuestError as error:
        raise HTTPException(422, str(error)) from error
