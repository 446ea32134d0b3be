"""One slow request of the example service, by its trace id: the story is what was staged.

The guests are fakes that take seconds of a mock clock, so every figure is known beforehand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from attrs import evolve
from documents import load_program
from report.logs import run_command

from trio_wasmcache import TrapError
from trio_wasmcache.testing import FakeEngine, open_fake_cache

SERVICE = Path(__file__).parents[2] / "examples" / "udf_service.py"
PAGE = 65536
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
I64 = {"args": "i64", "returns": "i64", "export": "run"}


async def stage(service: Any, engine: FakeEngine, logger: Any) -> str:
    """Three tenants: one is evicted for another, and its next request comes behind its own."""

    def fail(_value: int) -> int:
        raise TrapError("wasm trap: unreachable", code="unreachable")

    modules = {
        "/ann/long": engine.module(seconds=3),
        "/ann/price": engine.module(lambda x: x or fail(x), seconds=2, start_seconds=0.5),
        "/bob/add": engine.module(),
        "/cid/add": engine.module(),
    }
    service.PLANS["ann"] = service.Plan(capacity=1)
    # Two instances of a page each, with what is counted beside it.
    config = evolve(service.LIMITS, offload_after=None, max_size=5 * PAGE, idle_timeout=60.0)
    async with (
        open_fake_cache(config, engine=engine, logger=logger) as cache,
        trio.open_nursery() as tenants,
    ):
        client = service.make_app(service.Service(cache, tenants)).test_client()

        async def call(path: str, value: int, trace: str = "") -> Any:
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"} if trace else {}
            return await client.post(path, json={"args": [value]}, headers=headers)

        for tenant in ("ann", "bob", "cid"):
            assert (await client.put(f"/{tenant}")).status_code == 201
        for path, wasm in modules.items():
            made = await client.put(path, query_string=I64, data=wasm)
            assert made.status_code == 201
        for path in ("/ann/price", "/bob/add", "/cid/add"):  # the last one evicts the first
            assert (await call(path, 7)).status_code == 200
        await trio.sleep(4)
        told: list[Any] = []

        async def ask(path: str, value: int, trace: str = "") -> None:
            told.append(await call(path, value, trace))

        async with trio.open_nursery() as clients:
            clients.start_soon(ask, "/ann/long", 1)
            await trio.sleep(1)
            clients.start_soon(ask, "/ann/price", 0, TRACE)
        first, second = told
        assert (first.status_code, second.status_code) == (200, 422)
        assert len(first.headers["x-trace-id"]) == 32
        tenants.cancel_scope.cancel()
    return str(second.headers["x-trace-id"])


def test_the_story_of_a_slow_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It waited for a token, then for a load, as its instance was evicted for another tenant."""
    log = tmp_path / "service.jsonl"
    clock = trio.testing.MockClock(autojump_threshold=0)
    with log.open("w") as file:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.JSONRenderer(),
            ],
        )
        assert trio.run(stage, load_program(SERVICE), FakeEngine(), logger, clock=clock) == TRACE
    question = "report", log, "--where", f"trace_id={TRACE}"
    ran = run_command(capsys, *question, "--json")
    assert ran.status == 0
    (story,) = json.loads(ran.out)["stories"]
    assert (story["function"], story["group"]) == ("ann/price", "ann")
    assert (story["outcome"], story["error"]) == ("failed", "TrapError")
    assert story["waited_seconds"] == {"a token": pytest.approx(2.0)}
    assert story["load_seconds"] == pytest.approx(0.5)
    assert story["held_seconds"] == pytest.approx(2.0)
    assert story["seconds"] == pytest.approx(4.5)
    steps = {step["event"]: step for step in story["steps"]}
    assert steps["requested"]["behind"]["function"] == "ann/long"
    gone = steps["loaded"]["gone"]
    assert (gone["reason"], gone["for_group"], gone["for_function"]) == ("size", "cid", "cid/add")
    # It was evicted 4 s before the requests, 1 s before its own came, which then waited for 2 s.
    assert gone["seconds_before"] == pytest.approx(7.0)
    words = " ".join(run_command(capsys, *question).out.split())
    for sentence in (
        "failed with TrapError after 4.5 s: 2.0 s for a token, 500 ms to load, 2.0 s in its",
        "waited 2.0 s behind request 4, ann/long(i64) in group ann, whose lease lasted 3.0 s",
        "the last one had gone 7.0 s before, for size, for the sake of request 3, cid/add(i64) in",
        "wasm trap: unreachable",
    ):
        assert sentence in words, words
