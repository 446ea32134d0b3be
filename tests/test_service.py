"""`examples/udf_service.py` as a process: good tenants, a hostile one, and SIGTERM under load."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guests
import httpx
import pytest
import trio
from bench.harness import percentile

ROOT = Path(__file__).parent.parent
SERVICE = ROOT / "examples" / "udf_service.py"
GOOD = ("ann", "bob", "cid")
# Of each connection of a good tenant.
REQUESTS = int(os.environ.get("SERVICE_REQUESTS", "15"))
CONNECTIONS = 3
# Long enough for a machine under load.
HANG = 120
BAD = {
    "endless": (guests.ENDLESS, "FuelExhaustedError"),
    "recursion": (guests.RECURSION, "StackOverflowError"),
    "memory": (guests.MEMORY_BOMB, None),
    "table": (guests.TABLE_BOMB, None),
    "start": (guests.START_LOOP, "LoadError"),
    "trap": ('(func (export "run") (param i64) (result i64) unreachable)', "TrapError"),
}


# httpx leaves the body of a request half sent where the service answers before it has come whole,
# or goes meanwhile: a generator that Trio warns of whenever it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")


@pytest.fixture(autouse=True)
def _bodies_half_sent() -> Iterator[None]:
    """Collected here, where the warning is ignored, and not in whatever test comes next."""
    yield
    gc.collect()


class Service:
    """The process, and a client that talks to it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.all_refused = trio.Event()  # the hostile tenant has tried everything once

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.address, timeout=HANG)

    async def upload(
        self, client: httpx.AsyncClient, path: str, wasm: bytes, replace: int = 0
    ) -> httpx.Response:
        query = {"args": "i64", "returns": "i64", "export": "run", "replace": replace}
        return await client.put(path, params=query, content=bytes(wasm))

    async def work(self, tenant: str, number: int) -> None:
        """Call with numbers of its own, and check every answer."""
        async with self.client() as client:
            for n in range(REQUESTS):
                began = time.perf_counter()
                x = 1000 * number + n
                if n % 3:
                    answer = await client.post(f"/{tenant}/add", json={"args": [x]})
                    assert answer.json() == {"result": x + len(tenant) + ord(tenant[0])}
                else:
                    answer = await client.post(f"/{tenant}/fib", json={"columns": [[10, 15]]})
                    assert answer.json() == {"result": [55, 610]}
                self.seconds.append(time.perf_counter() - began)
                self.answers[answer.status_code] += 1

    async def attack(self, bad: dict[int, Counter[str]]) -> None:
        """Everything that a hostile tenant may think of, again and again."""
        async with self.client() as client:
            while True:
                for name, (text, error) in BAD.items():
                    wasm = guests.binary(text)
                    for answer in (
                        await self.upload(client, f"/eve/{name}", wasm, replace=1),
                        await client.post(f"/eve/{name}", json={"args": [1]}),
                    ):
                        told = answer.json().get("error", "none")
                        bad.setdefault(answer.status_code, Counter())[told] += 1
                    if answer.status_code == 422:
                        assert told == error
                for broken in (b"", wasm[:-3], bytes(1_060_000), bytes(2**21)):
                    answer = await self.upload(client, "/eve/broken", broken, replace=1)
                    told = answer.json()["error"]
                    bad.setdefault(answer.status_code, Counter())[told] += 1
                self.all_refused.set()


def start() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, SERVICE, "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "service.listening":
            return process, event["address"]
    raise AssertionError("the service did not start")


async def test_a_hostile_tenant_spoils_nothing_for_others() -> None:
    """All answers of the others are right; SIGTERM under load ends it, with its log whole."""
    process, address = await trio.to_thread.run_sync(start)
    lines: list[dict[str, Any]] = []

    def read() -> str:
        assert process.stdout is not None
        assert process.stderr is not None
        lines.extend(map(json.loads, process.stdout))
        return process.stderr.read()

    errors: list[str] = []
    bad: dict[int, Counter[str]] = {}
    service = Service(address)
    try:
        with trio.fail_after(HANG):
            async with trio.open_nursery() as reading:

                async def keep_reading() -> None:
                    errors.append(await trio.to_thread.run_sync(read, abandon_on_cancel=True))

                reading.start_soon(keep_reading)
                async with service.client() as client:
                    for tenant in (*GOOD, "eve"):
                        made = await client.put(f"/{tenant}", json={"capacity": 2})
                        assert made.status_code == 201
                    for tenant in GOOD:
                        body = f"(i64.add (local.get 0) (i64.const {len(tenant) + ord(tenant[0])}))"
                        text = f'(func (export "run") (param i64) (result i64) {body})'
                        for name, source in (("add", text), ("fib", guests.FIB)):
                            wasm = guests.binary(source)
                            made = await service.upload(client, f"/{tenant}/{name}", wasm)
                            assert made.status_code == 201

                    async def attack() -> None:
                        try:
                            await service.attack(bad)
                        except httpx.TransportError:
                            assert stopping  # the service went, as it was told to

                    stopping = False
                    async with trio.open_nursery() as attackers:
                        for _ in range(3):
                            attackers.start_soon(attack)
                        async with trio.open_nursery() as workers:
                            for number in range(CONNECTIONS):
                                for tenant in GOOD:
                                    workers.start_soon(service.work, tenant, number)
                        await service.all_refused.wait()
                        told = await client.get("/stats")
                        assert told.status_code == 200
                        stopping = True
                        process.send_signal(signal.SIGTERM)
    finally:
        process.kill()
        code = process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    assert (code, errors) == (0, [""])
    assert service.answers == {200: REQUESTS * CONNECTIONS * len(GOOD)}
    assert 500 not in bad
    log = [line for line in lines if "seq" in line]
    assert [line["seq"] for line in log] == list(range(log[0]["seq"], log[0]["seq"] + len(log)))
    assert log[-1]["event"] == "wasmcache.closed"
    loaded = [line["instance"] for line in log if line["event"] == "wasmcache.loaded"]
    assert set(loaded) <= {line["instance"] for line in log if line["event"] == "wasmcache.evicted"}
    p50, p99 = (1000 * percentile(service.seconds, part) for part in (0.5, 0.99))
    print(f"{service.answers[200]} right answers, p50 {p50:.0f} ms, p99 {p99:.0f} ms; eve: {bad}")


async def test_mistakes_of_clients_are_told_and_leave_nothing() -> None:
    """On one connection, also where a request is refused before its body has come."""
    process, address = await trio.to_thread.run_sync(start)
    statuses: Counter[int] = Counter()

    async def upload(client: httpx.AsyncClient, kind: str) -> None:
        wasm = bytes(guests.binary(f'(func (export "run") (param {kind}))'))
        query = {"args": kind, "export": "run", "replace": 1}
        statuses[(await client.put("/ann/same", params=query, content=wasm)).status_code] += 1

    try:
        async with httpx.AsyncClient(base_url=address, timeout=HANG) as client:
            assert (await client.put("/ann")).status_code == 201
            for _ in range(20):
                for method, path, status in (
                    ("POST", "/ann/none", 404),
                    ("PUT", "/bob/none", 404),
                    ("POST", "/stats", 405),
                ):
                    answer = await client.request(method, path, content=b"[]")
                    assert answer.status_code == status
            answer = await client.put("/ann/big", content=bytes(2**21))
            assert (answer.status_code, answer.headers["connection"]) == (413, "close")
            answer = await client.put("/ann/%0Anew%20line", content=b"")
            assert (answer.status_code, answer.json()["error"]) == (400, "Problem")
            # All at once, each with other arguments: only one of them becomes the function.
            async with trio.open_nursery() as nursery:
                for kind in ("i32", "i64", "f32", "f64"):
                    nursery.start_soon(upload, client, kind)
            assert statuses == {201: 1, 409: 3}
            assert (await client.delete("/ann/same")).status_code == 200
            assert (await client.get("/stats")).json()["functions"] == 0
    finally:
        process.terminate()
        output, errors = await trio.to_thread.run_sync(process.communicate)
    assert (process.returncode, errors) == (0, "")
    assert "service.failed" not in output


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["port"], 2)])
def test_without_a_port_it_explains_itself(arguments: list[str], code: int) -> None:
    """And listens nowhere."""
    done = subprocess.run(
        [sys.executable, SERVICE, *arguments], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert "udf_service.py 8080" in done.stdout
