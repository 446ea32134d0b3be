"""`examples/udf_service.py` as a process: good tenants, a hostile one, and SIGTERM under load."""

from __future__ import annotations

import collections
import datetime
import decimal
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import guests
import httpx
import pytest
import trio
from bench.harness import percentile
from documents import load_program
from hostile.guest import Gives
from hostile.liars import packed, scylla

from trio_wasmcache._abi.cql.scalars import scalars
from trio_wasmcache._abi.cql.types import parse_type

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "examples" / "udf_service.py"
GOOD = ("ann", "bob", "cid")
# Of each connection of a good tenant.
REQUESTS = int(os.environ.get("SERVICE_REQUESTS", "15"))
CONNECTIONS = 3
# Long enough for a machine under load.
HANG = 600
BAD = {
    "endless": (guests.ENDLESS, "FuelExhaustedError"),
    "recursion": (guests.RECURSION, "StackOverflowError"),
    "memory": (guests.MEMORY_BOMB, None),
    "table": (guests.TABLE_BOMB, None),
    "start": (guests.START_LOOP, "LoadError"),
    "trap": ('(func (export "run") (param i64) (result i64) unreachable)', "TrapError"),
}


MIB = 2**20
# So many zeros of its memory, as text.
TEXT = bytes(
    guests.binary(
        '(memory (export "memory") 96) (global (export "_scylla_abi") i32 (i32.const 8))'
        '(data (i32.const 8) "\\01") (func (export "run") (param i64) (result i64)'
        " (i64.or (i64.const 16) (i64.shl (local.get 0) (i64.const 32))))"
    )
)


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
                        made = await client.put(f"/{tenant}")
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
            for query, status, told in (
                ({"seconds": 0.01}, 200, "What the guests do"),
                ({"seconds": 0.01, "form": "collapsed"}, 200, ""),
                ({"seconds": 0}, 400, "seconds must be from 0 to 60"),
                ({"seconds": "nan"}, 400, "seconds must be"),
                ({"form": "save"}, 400, "form must be one of html, collapsed"),
                ({"group": "bob"}, 400, "the address has 'group'"),
            ):
                answer = await client.get("/ann/profile", params=query)
                assert answer.status_code == status
                assert told in answer.text
            assert (await client.get("/bob/profile")).status_code == 404
            # All at once, each with other arguments: only one of them becomes the function.
            async with trio.open_nursery() as nursery:
                for kind in ("i32", "i64", "f32", "f64"):
                    nursery.start_soon(upload, client, kind)
            assert statuses == {201: 1, 409: 3}
            # Text of control characters is six times as long in JSON; and a flood in a batch.
            query = {"args": "bigint", "returns": "text", "export": "run"}
            made = await client.put("/ann/text", params=query, content=TEXT)
            assert made.status_code == 201
            answer = await client.post("/ann/text", json={"args": [MIB - 100]})
            assert answer.json() == {"result": "\0" * (MIB - 100)}
            assert MIB < len(answer.content) < 6 * MIB
            for body in ({"args": [MIB]}, {"args": [4 * MIB]}, {"columns": [[MIB // 4] * 2000]}):
                answer = await client.post("/ann/text", json=body)
                assert (answer.status_code, answer.json()["error"]) == (422, "ResultTooLargeError")
                assert len(answer.content) < 2000
            assert (await client.delete("/ann/text")).status_code == 200
            assert (await client.delete("/ann/same")).status_code == 200
            assert (await client.get("/stats")).json()["functions"] == 0
    finally:
        process.terminate()
        output, errors = await trio.to_thread.run_sync(process.communicate)
    assert (process.returncode, errors) == (0, "")
    assert "service.failed" not in output


@asynccontextmanager
async def running() -> AsyncIterator[httpx.AsyncClient]:
    """The service, which fails nothing by its own fault and ends well."""
    process, address = await trio.to_thread.run_sync(start)
    try:
        with trio.fail_after(HANG):
            async with httpx.AsyncClient(base_url=address, timeout=HANG) as client:
                yield client
    finally:
        process.terminate()
        output, errors = await trio.to_thread.run_sync(process.communicate)
    assert (process.returncode, errors) == (0, "")
    assert "service.failed" not in output


HUGE = 10**5000
DAY = datetime.date(2026, 2, 3)
NOON = datetime.datetime(2026, 2, 3, 4, 5, 6, 789000)
# (CQL type, value or its bytes, what JSON says)
RESULTS: list[tuple[str, Any, Any]] = [
    ("tuple<boolean>", (True,), [True]),
    ("tuple<int>", (-7,), [-7]),
    ("tuple<bigint>", (-(2**63),), [-(2**63)]),
    ("list<float>", [math.inf], ["Infinity"]),
    ("list<double>", [math.nan, -math.inf, 0.5], ["NaN", "-Infinity", 0.5]),
    ("varint", 2**64, str(2**64)),
    ("varint", -(2**70), str(-(2**70))),
    ("varint", 7, 7),
    ("varint", HUGE, hex(HUGE)),
    ("decimal", decimal.Decimal("-1.50"), "-1.50"),
    ("text", "h\u00e9\0", "h\u00e9\0"),
    ("ascii", "a", "a"),
    ("blob", b"\0\xff", "AP8="),
    ("uuid", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (
        "timeuuid",
        uuid.UUID("00000000-0000-1000-8000-000000000000"),
        "00000000-0000-1000-8000-000000000000",
    ),
    ("inet", "127.0.0.1", "127.0.0.1"),
    ("inet", "::1", "::1"),
    ("date", DAY, "2026-02-03"),
    ("date", b"\0\0\0\0", -(2**31)),
    ("time", datetime.time(4, 5, 6, 789000), "04:05:06.789000000"),
    ("timestamp", NOON, "2026-02-03T04:05:06.789Z"),
    ("timestamp", 2**62, 2**62),
    ("duration", b"\2\4\6", {"months": 1, "days": 2, "nanoseconds": 3}),
    ("list<int>", [1, None], [1, None]),
    ("set<uuid>", {uuid.UUID(int=1)}, ["00000000-0000-0000-0000-000000000001"]),
    ("map<text,decimal>", {"a": decimal.Decimal(1)}, {"a": "1"}),
    ("map<int,blob>", {1: b"x"}, [[1, "eA=="]]),
    ("map<list<int>,set<date>>", {(1,): {DAY}}, [[[1], ["2026-02-03"]]]),
    ("tuple<int,inet,varint>", (1, "::1", 2**64), [1, "::1", str(2**64)]),
]


async def test_every_type_of_result_has_json() -> None:
    """As the service says at its top, by a call and in a column; a null is null."""
    async with running() as client:
        assert (await client.put("/ann")).status_code == 201
        for kind, value, says in RESULTS:
            codec = parse_type("test", kind, lambda word: scalars().get(word), {})
            raw = isinstance(value, bytes) and kind != "blob"
            data = value if raw else bytes(codec.encode(value))
            text = "".join(f"\\{byte:02x}" for byte in data)
            sizes = {"same": len(data), **({"null": -1} if kind == "text" else {})}
            for name, size in sizes.items():
                gives, far = packed(size, 1024), "(i32.const 60000)"
                wasm = scylla("", Gives(None), gives, malloc=far, data=text).wasm()
                query = {"args": "text", "returns": kind, "export": "run", "replace": 1}
                made = await client.put(f"/ann/{name}", params=query, content=bytes(wasm))
                assert made.status_code == 201, (kind, made.text)
                got = await client.post(f"/ann/{name}", json={"args": ["x"]})
                expected = says if name == "same" else None
                assert (got.status_code, got.json()) == (200, {"result": expected}), kind
                got = await client.post(f"/ann/{name}", json={"columns": [["x", "y"]]})
                assert got.json() == {"result": [expected, expected]}, kind


def test_a_user_type_is_an_object() -> None:
    """Whose fields are as other values; a set within it is an array."""
    module = load_program(SERVICE)
    address = collections.namedtuple("address", "street zips")
    assert module.plain([address("a", frozenset({1}))]) == [{"street": "a", "zips": [1]}]
    assert module.plain(memoryview(b"ab")) == [97, 98]
    with pytest.raises(module.Problem, match="a result of type object has no JSON"):
        module.plain(object())


TOO_MUCH: list[tuple[str, str, Any]] = [
    *(
        ("PUT", "/bob", body)
        for body in (
            '{"capacity": Infinity}',
            '{"capacity": NaN}',
            '{"capacity": 1}',
            '{"shares": 1000000}',
            '{"name": "eve"}',
            "[]",
            "[" * 10_000,
            '{"a": ' + "9" * 5000 + "}",
        )
    ),
    ("PUT", "/" + "a" * 65, ""),
    ("PUT", "/a%20b", ""),
    ("PUT", "/ann/" + "f" * 65, ""),
    ("PUT", "/ann/f?" + "args=" + ",".join(["i64"] * 33), ""),
    ("PUT", "/ann/f?isolation=fresh", ""),
    ("PUT", "/ann/f?concurrency=100000", ""),
    ("PUT", "/ann/f?replace=2", ""),
    ("PUT", "/ann/f?args=i64&returns=" + "list<" * 2000, ""),
    *(
        ("POST", "/ann/same", body)
        for body in (
            "",
            "{}",
            '{"args": 7}',
            '{"args": [1], "columns": [[1]]}',
            '{"args": [1], "timeout": 1e9}',
            '{"args": [NaN]}',
            '{"args": [1, 2]}',
            '{"args": [' + "1," * 100_000 + "1]}",
            '{"columns": [' + "[1]," * 10_000 + "[1]]}",
            '{"args": [' + "[" * 500 + "]" * 500 + "]}",
            '{"columns": [1]}',
        )
    ),
]


async def test_what_tenants_send_is_held_to_the_services_own_limits() -> None:
    """400 or 422, never a limit of the tenant's choice, and nothing that is left behind."""
    async with running() as client:
        assert (await client.put("/ann", content=b"{}")).status_code == 201
        wasm = guests.binary('(func (export "run") (param i64) (result i64) (local.get 0))')
        query = {"args": "i64", "returns": "i64", "export": "run"}
        made = await client.put("/ann/same", params=query, content=bytes(wasm))
        assert made.status_code == 201
        before = (await client.get("/stats")).json()
        for method, path, body in TOO_MUCH:
            got = await client.request(method, path, content=body)
            assert got.status_code in (400, 422), (path[:50], body[:50], got.text)
            assert len(got.text) < 2000
        assert (await client.post("/ann/same", json={"args": [7]})).json() == {"result": 7}
        after = (await client.get("/stats")).json()
        assert (after["tenants"], after["functions"]) == (before["tenants"], 1)


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["port"], 2)])
def test_without_a_port_it_explains_itself(arguments: list[str], code: int) -> None:
    """And listens nowhere."""
    done = subprocess.run(
        [sys.executable, SERVICE, *arguments], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert "udf_service.py 8080" in done.stdout
