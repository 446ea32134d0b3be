"""`examples/fastapi_service.py` as a process, under both servers, with a real client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
# Long enough for a machine under load.
HANG = 600
# {server: (arguments, line that says where it listens, exit status after SIGTERM)}
SERVERS = {
    "uvicorn": (
        ["--app-dir", "examples", "--port", "0", "fastapi_service:app"],
        r"Uvicorn running on (http://\S+)",
        -signal.SIGTERM,  # which uvicorn raises again at its end
    ),
    "hypercorn": (
        ["--worker-class", "trio", "--bind", "127.0.0.1:0", "examples/fastapi_service:app"],
        r"Running on (http://\S+)",
        0,
    ),
}


class Server:
    """The process."""

    def __init__(self, name: str) -> None:
        arguments, listening, self.status = SERVERS[name]
        self.process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # or `communicate` would lose lines that came together with the one below
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for read in self.process.stdout:
            line = read.decode()
            self.lines.append(line)
            found = re.search(listening, line)
            if found:
                self.address = found[1]
                return
        raise AssertionError("".join(self.lines))


# The other one at night: `udf_service.py`, whose test always runs, is served by it, too.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


@pytest.fixture(params=SERVERS if NIGHTLY else ("uvicorn",))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of both servers, in a process of its own."""
    for name in (request.param, "fastapi"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (the extra [examples])")
    server = Server(request.param)
    try:
        yield server
    finally:
        server.process.kill()


def test_the_app_serves_under_both(server: Server) -> None:
    """Calls with host functions, at the same time; a timeout stops a guest; SIGTERM ends it all."""

    async def main() -> None:
        async with httpx.AsyncClient(base_url=server.address, timeout=HANG) as client:
            queries = [{"cents": n, "country": 1} for n in range(20)]
            forever = asyncio.create_task(client.get("/forever?seconds=0.2"))
            answers = await asyncio.gather(*(client.get("/price", params=q) for q in queries))
            assert [one.json() for one in answers] == [
                {"result": n * 250 // 100} for n in range(20)
            ]
            stopped = await forever
            assert (stopped.status_code, stopped.json()["detail"]) == (
                504,
                "the function was stopped after 0.2 seconds",
            )
            for mistake in (
                *("/nope", "/_state", f"/price?cents={10**23}", "/price?country=x"),
                *("/price?seconds=nan", "/price?seconds=-1", "/forever?seconds=inf"),
            ):
                assert (await client.get(mistake)).status_code == 422, mistake
            # One that is under way when the server ends.
            cut_off = asyncio.create_task(client.get("/forever?seconds=1"))
            assert (await client.get("/price")).json() == {"result": 0}
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait([cut_off])
            if not cut_off.cancelled() and cut_off.exception() is None:
                assert cut_off.result().status_code in (500, 504)

    asyncio.run(main())
    rest, _ = server.process.communicate(timeout=HANG)
    assert server.process.returncode == server.status, rest
    lines = [*server.lines, *rest.decode().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events[0]["event"] == "wasmcache.opened"
    assert events[-1]["event"] == "wasmcache.closed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    reasons = [event["reason"] for event in events if event["event"] == "wasmcache.evicted"]
    assert reasons.count("corrupted") >= 1
