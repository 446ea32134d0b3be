"""The examples and the demo, run as a newcomer runs them."""

import json
import math
import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import trio_wasmcache
from trio_wasmcache.__main__ import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
UDFS = EXAMPLES / "udfs"


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def output_of(name: str, *arguments: str | Path) -> str:
    result = run(EXAMPLES / name, *arguments)
    assert result.stderr == ""
    assert result.returncode == 0
    return result.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def test_every_example_is_tested_and_short() -> None:
    """Each example has a test here, and fewer than 60 lines; others have tests of their own."""
    here = Path(__file__).read_text(encoding="utf-8")
    others = {"udf_service.py", "fastapi_service.py", "engines.py", "ray_data.py"}
    for example in set(EXAMPLES.glob("*.py")) - {EXAMPLES / other for other in others}:
        assert f'output_of("{example.name}"' in here
        assert len(example.read_text(encoding="utf-8").splitlines()) < 60, example.name


def test_airports() -> None:
    """The C function finds the farthest pair, and Python agrees on every distance."""
    out = output_of("airports.py")
    assert "124 international airports, 7626 pairs" in out
    assert re.search(r"Farthest: Luis Munoz .* and Yap International \(YAP\), 15933\.9 km", out)
    assert "Python's math agrees on every pair" in out


def test_opa() -> None:
    """The policy's decisions are those of its rules; more are compared in `abi/test_opa.py`."""
    verdict, *decisions = output_of("opa.py").splitlines()
    assert verdict.startswith("reset: ")
    assert decisions == [
        "ada may write the plan",
        "bob may read the plan",
        "bob may not write the plan",
    ]


def test_javascript() -> None:
    """Each call finds the prelude and nothing else; what it logs is logged, and limits hold."""
    folder = os.environ.get("WASMCACHE_QUICKJS")
    if folder is None:
        pytest.skip("WASMCACHE_QUICKJS names no folder with the guest of quickjs-rs")
    out = output_of("javascript.py", folder)
    assert "tenants 0, 1, 99: [0, 2, 108.95]" in out
    assert re.search(r"console\.log +line=.*got 41.*\n42\n41\n41\n", out)
    assert re.search(r"FuelExhaustedError .*\nJavaScriptError .*out of memory", out)


def test_two_groups() -> None:
    """The fuel is split about as the shares say."""
    out = output_of("two_groups.py")
    assert 2.5 < number(r"ratio ([\d.]+)", out) < 3.6


def test_evictions() -> None:
    """Every line of stdout is the JSON of one eviction, with the reasons and functions in order."""
    events = [json.loads(line) for line in output_of("evictions.py").splitlines()]
    assert {event["event"] for event in events} == {"wasmcache.evicted"}
    assert [(event["reason"], event["function"]) for event in events] == [
        ("size", "steps"),
        ("code", "crc32"),
        ("code", "words"),
        ("idle", "steps"),
    ]
    assert all(event["freed_bytes"] > 0 and event["level"] == "info" for event in events)


def test_cancellation() -> None:
    """The endless call ends at its timeout, and the neighbour has made its calls meanwhile."""
    out = output_of("cancellation.py")
    assert 0.5 <= number(r"cut off after ([\d.]+) s", out) < 5
    assert number(r"neighbour made (\d+) calls", out) >= 3
    assert "steps(i64) called with (0) after 50000000 units of fuel: all fuel is burnt" in out


def test_host_function() -> None:
    """Guests wait for an async Python function all at once, and get its exceptions."""
    out = output_of("host_function.py")
    assert "100 of product 1:   187.50" in out
    assert number(r"all at once: ([\d.]+) s in total", out) < 1.0
    assert "No price of product 4: the call raised KeyError" in out


@pytest.fixture(scope="module")
def written_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the application with a log writes."""
    log = tmp_path_factory.mktemp("log") / "wasmcache.jsonl"
    assert output_of("write_log.py", log) == f"Now try: python -m trio_wasmcache report {log}\n"
    return log


def test_write_log(written_log: Path) -> None:
    """The log is whole, and its report agrees with the cache's own counts."""
    result = run("-m", "trio_wasmcache", "report", "--json", written_log)
    assert (result.returncode, result.stderr) == (0, "")
    (cache,) = json.loads(result.stdout)["caches"]
    assert cache["sequence"]["missing"] == 0
    assert {row["group"] for row in cache["groups"]} == {"web", "reports"}
    # On a slow machine, all may have been idle for too long before the groups are closed.
    assert {"size"} < {*cache["evictions"]["by_reason"]} <= {"size", "idle", "group_closed"}
    counted = {
        name: cache["leases"][name] for name in ("hits", "seat_hits", "misses", "blocks", "calls")
    }
    assert {**counted, "evictions": cache["evictions"]["count"]} == cache["closed"]


def test_ask_log(written_log: Path) -> None:
    """polars answers three questions, and agrees with the report."""
    out = output_of("ask_log.py", written_log)
    assert out.count("?") == 3
    report = run("-m", "trio_wasmcache", "report", "--json", written_log)
    (cache,) = json.loads(report.stdout)["caches"]
    loads = re.findall(r"│ check_\d +┆ +(\d+) ", out)
    assert sum(map(int, loads)) == cache["reloads"]["by_reason"]["size"]["count"]
    leases = re.findall(r"│ (?:web|reports) +┆ (true|false) +┆ (\d+) ", out)
    hits = sum(int(number) for hit, number in leases if hit == "true")
    misses = sum(int(number) for hit, number in leases if hit == "false")
    assert (hits, misses) == (cache["leases"]["hits"], cache["leases"]["misses"])
    assert {int(of) for of in re.findall(r"┆ (\d+) +│$", out, re.MULTILINE)} >= {hits}


def test_every_udf_has_its_source() -> None:
    """Each checked-in module is small, and its source and build command lie next to it."""
    build = (UDFS / "build.sh").read_text(encoding="utf-8")
    modules = sorted(UDFS.glob("*.wasm"))
    assert len(modules) == 8
    for module in modules:
        assert module.stat().st_size < 16 * 1024
        assert module.stem in build
        name, _, _ = module.name.partition(".")
        assert any((UDFS / f"{name}.{language}").exists() for language in ("c", "rs"))


async def test_distance_is_as_exact_as_python() -> None:
    """`distance` agrees with Python's math to 1e-9 anywhere on the globe, also across the poles."""
    places = random.Random(7)
    types = ("f64",) * 4
    async with trio_wasmcache.open_cache() as cache:
        await cache.register("distance", UDFS / "distance.wasm", args=types, returns="f64")
        async with cache.acquire("distance", types) as distance:
            for _ in range(1000):
                lat1, lat2 = places.uniform(-90, 90), places.uniform(-90, 90)
                lon1, lon2 = places.uniform(-180, 180), places.uniform(-180, 180)
                half = math.sin(math.radians(lat2 - lat1) / 2) ** 2
                half += (
                    math.sin(math.radians(lon2 - lon1) / 2) ** 2
                    * math.cos(math.radians(lat1))
                    * math.cos(math.radians(lat2))
                )
                expected = 2 * 6371.0088 * math.asin(math.sqrt(half))
                assert await distance.call(lat1, lon1, lat2, lon2) == pytest.approx(expected, 1e-9)
            assert await distance.call(10.0, 20.0, 10.0, 20.0) == 0.0
            assert await distance.call(90.0, 0.0, -90.0, 0.0) == pytest.approx(math.pi * 6371.0088)


@pytest.mark.parametrize("text", ["", "one", " naïve café\n¿zwölf  Wörter?\u2003ja ", "x " * 16000])
async def test_text_udfs_agree_with_python(text: str) -> None:
    """`crc32` (C) and `words` (Rust) read a text from guest memory and agree with Python."""
    data = text.encode()
    results = {}
    async with trio_wasmcache.open_cache() as cache:
        for name, returns in (("crc32", "u32"), ("words", "i64")):
            module = UDFS / f"{name}.wasm"
            buffer = await cache.register(
                f"{name}_text", module, args=(), returns="u32", export="text_buffer"
            )
            at = await buffer.call()
            function = await cache.register(name, module, args=("u32",), returns=returns)
            async with function.acquire() as lease:
                lease.memory.write(at, data)
                results[name] = await lease.call(len(data))
    assert results == {"crc32": zlib.crc32(data), "words": len(text.split())}


def check_story(out: str) -> None:
    """What the demo must have told, whatever the pace."""
    assert max(map(len, out.splitlines())) <= 80
    log = [line.split(maxsplit=3)[2:] for line in out.splitlines() if line.startswith("| ")]
    kinds = [kind for kind, _ in log]
    assert kinds[0] == "opened"
    assert kinds[-1] == "closed"
    assert kinds.count("registered") == 3
    assert kinds.count("blocked") == 1
    reasons = re.findall(r"reason=(\w+)", out)
    assert reasons == ["size", "code", "idle", "idle"]
    assert re.search(r"acquired +fib +hit=False", out)
    assert re.search(r"acquired +fib +hit=True", out)
    assert "fib(20) = 6765" in out
    assert "in this order: gcd(1071, 462) = 21, fib(37), fib(1)." in out
    assert "There are 9592 primes below 100,000." in out
    table = dict(re.findall(r"^  ([a-z ]+?) +(\d+)   ", out, re.MULTILINE))
    assert table == {
        "hits": "3",
        "misses": "4",
        "blocks": "1",
        "calls": "7",
        "evictions": "4",
        "idle instances": "0",
        "functions": "3",
    }


def test_demo() -> None:
    """`python -m trio_wasmcache demo` tells the whole story in 80 columns, plain when piped."""
    result = run("-m", "trio_wasmcache", "demo")
    assert result.stderr == ""
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    check_story(result.stdout)


class Terminal:
    """A stdout that says that it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("optimizing_only")
@pytest.mark.parametrize("no_color", [False, True])
def test_demo_in_a_terminal(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    """In a terminal the same story has colours, unless NO_COLOR is set."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    assert main(["demo", "--pause", "0"]) == 0
    assert ("\x1b[" in terminal.text) is not no_color
    check_story(re.sub(r"\x1b\[\d+m", "", terminal.text))


def test_no_arguments_show_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments the command line explains itself."""
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m trio_wasmcache")
    assert "demo" in out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["demo", "more"], ["demo", "--pause", "-1"]]
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments are refused, with the usage on stderr and nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: python -m trio_wasmcache" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version, also where the package is not installed."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(
        r"trio_wasmcache (\d+\.\d+\S*|\(not installed\))\n", capsys.readouterr().out
    )


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 0)])
def test_demo_cut_short(error: type[BaseException], status: int) -> None:
    """Ctrl-C and a reader that has gone away end the demo without a traceback."""
    program = (
        "import sys, trio_wasmcache._demo as demo, trio_wasmcache.__main__ as command\n"
        f"def say(*_): raise {error.__name__}\n"
        "demo.Teller.say = say\n"
        "sys.exit(command.main(['demo']))\n"
    )
    result = run("-c", program)
    assert result.stderr == ""
    assert result.returncode == status
