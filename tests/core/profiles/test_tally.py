"""What samples add up to, and how it is written: whatever the names are, and however many."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import Frame
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.profiles import tally as tallies
from trio_wasmcache._core.profiles.collapsed import collapsed_lines
from trio_wasmcache._core.profiles.firefox import VERSION, firefox_profile
from trio_wasmcache._core.profiles.tally import LEFT_OUT, MAX_DEPTH, Origin, ProfileTally

F = Origin("main", FunctionKey("f", ("i64",)), 1)
G = Origin("b", FunctionKey("g", ()), 2)
HOSTILE = 'evil;main;f 99\n</script><script>alert(1)//\u2028\x1b[2J"\\ \u202e \ud800 & x\t'
# A path, and its weight: what tools for flame graphs read.
LINE = re.compile(r"([^;\s]+(?:;[^;\s]+)*) ([1-9][0-9]*)")


def frames(*names: str) -> list[Frame]:
    """A stack: the innermost function first."""
    return [Frame(name, number) for number, name in enumerate(names)]


def read_collapsed(text: str) -> dict[tuple[str, ...], int]:
    """Read collapsed stacks as strictly as any tool does."""
    found: dict[tuple[str, ...], int] = {}
    for line in text.splitlines():
        made = LINE.fullmatch(line)
        assert made, line
        path = tuple(made[1].split(";"))
        found[path] = found.get(path, 0) + int(made[2])
    return found


class Thread:
    """Reads a thread of a processed profile, and checks what the format demands of it."""

    def __init__(self, thread: dict[str, Any]) -> None:
        self.thread = thread
        texts = thread["stringArray"]
        assert all(isinstance(text, str) for text in texts)
        assert len(set(texts)) == len(texts)
        tables = {name: one for name, one in thread.items() if isinstance(one, dict)}
        assert set(tables) == {
            *("samples", "markers", "stackTable", "frameTable", "funcTable", "resourceTable"),
            "nativeSymbols",
        }
        for name, table in tables.items():
            columns = {key: one for key, one in table.items() if isinstance(one, list)}
            assert {len(column) for column in columns.values()} <= {table["length"]}, name
        self.stacks, self.frames = thread["stackTable"], thread["frameTable"]
        self.functions, self.samples = thread["funcTable"], thread["samples"]
        for number, prefix in enumerate(self.stacks["prefix"]):
            assert prefix is None or 0 <= prefix < number
        for column, table in (
            (self.stacks["frame"], self.frames),
            (self.frames["func"], self.functions),
        ):
            assert all(0 <= one < table["length"] for one in column)
        for column in (self.functions["name"], self.functions["fileName"]):
            assert all(one is None or 0 <= one < len(texts) for one in column)
        assert all(0 <= one < self.stacks["length"] for one in self.samples["stack"])
        assert all(delta >= 0 for delta in self.samples["timeDeltas"])
        for name in ("pid", "name", "processName", "processType"):
            assert isinstance(thread[name], str)
        assert isinstance(thread["tid"], int)

    def weights(self) -> dict[tuple[str, ...], int]:
        """{path: weight}."""
        texts, found = self.thread["stringArray"], {}
        for stack, weight in zip(self.samples["stack"], self.samples["weight"], strict=True):
            path: list[str] = []
            at = stack
            while at is not None:
                function = self.frames["func"][self.stacks["frame"][at]]
                path.insert(0, texts[self.functions["name"][function]])
                at = self.stacks["prefix"][at]
            found[tuple(path)] = found.get(tuple(path), 0) + weight
        return found

    def lines(self) -> dict[tuple[str, str, int], int]:
        """{(function, file, line): weight} of samples."""
        texts, found = self.thread["stringArray"], {}
        for stack, weight in zip(self.samples["stack"], self.samples["weight"], strict=True):
            frame = self.stacks["frame"][stack]
            function, line = self.frames["func"][frame], self.frames["line"][frame]
            if line is not None:
                file = self.functions["fileName"][function]
                key = texts[self.functions["name"][function]], texts[file], line
                found[key] = found.get(key, 0) + weight
        return found


def read_firefox(tally: ProfileTally) -> list[Thread]:
    """Write a profile, and read it again."""
    made = firefox_profile(tally, "a test", 1.5)
    profile = json.loads(json.dumps(made, allow_nan=False).encode("ascii"))
    meta = profile["meta"]
    assert (meta["preprocessedProfileVersion"], meta["startTime"]) == (VERSION, 1500.0)
    assert meta["categories"][0]["subcategories"]
    assert (meta["version"], meta["processType"], meta["interval"]) == (24, 0, 1.0)
    assert profile["libs"] == []
    return [Thread(thread) for thread in profile["threads"]]


def test_the_life_of_a_tally() -> None:
    """Samples of two functions in two groups, with lines, and then none any more."""
    tally = ProfileTally()
    recording = tally.samples_of(F)
    assert recording == tally.samples_of(F) != tally.samples_of(G)
    recording.add(frames("spin", "run"), 100, 2)
    recording.add(frames("spin", "run"), 50, 1)
    recording.add(frames("run"), 7, 1)
    tally.samples_of(G).add([], 3, 1)
    recording.lose(11)
    assert (tally.fuel, tally.samples, tally.lost_fuel) == (160, 5, 11)
    assert tally.of_function(F.key) == (4, 157)
    assert tally.offsets() == {1: [0]}
    tally.locate(1, {0: ("spin.c", 12, None)})
    text = "\n".join(collapsed_lines(tally))
    assert read_collapsed(text) == {
        ("main", "f(i64)", "run", "spin"): 150,
        ("main", "f(i64)", "run"): 7,
        ("b", "g()"): 3,
    }
    one, other = read_firefox(tally)
    assert one.weights() == {("f(i64)", "run", "spin"): 150, ("f(i64)", "run"): 7}
    assert one.lines() == {("spin", "spin.c", 12): 150, ("run", "spin.c", 12): 7}
    assert other.weights() == {("g()",): 3}
    assert one.thread["processName"], one.thread["name"] == ("main", "f(i64)")
    assert one.thread["pid"] != other.thread["pid"]
    recording.add(frames("late"), 1, 1)
    assert not recording.over
    tally.close()
    assert recording.over
    recording.add(frames("late"), 1000, 1)
    recording.lose(1000)
    assert (tally.fuel, tally.lost_fuel) == (161, 11)


NAMES = st.one_of(st.sampled_from([HOSTILE, "a", "b", "", " ", ";", "\n"]), st.text(max_size=8))


@tries(50)
@given(st.lists(st.tuples(st.lists(NAMES, max_size=5), st.integers(1, 10**12)), max_size=20), NAMES)
def test_any_names(stacks: list[tuple[list[str], int]], group: str) -> None:
    """All of the fuel is in each form, and nothing of a name is taken for anything else."""
    tally = ProfileTally()
    origin = Origin(group, FunctionKey(HOSTILE, ()), 1)
    for names, fuel in stacks:
        tally.add(origin, frames(*names), fuel, 1)
    tally.locate(1, {0: (HOSTILE, 3, 1)})
    total = sum(fuel for _, fuel in stacks)
    made = read_collapsed("\n".join(collapsed_lines(tally)))
    assert sum(made.values()) == total
    assert sum(sum(thread.weights().values()) for thread in read_firefox(tally)) == total


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep recursion, and paths without end: no fuel is lost."""
    tally = ProfileTally()
    deep = ["innermost", *(f"f{number}" for number in range(5000)), "outermost"]
    tally.add(F, frames(*deep), 5, 1)
    ((path, weight),) = read_collapsed("\n".join(collapsed_lines(tally))).items()
    assert (len(path), weight) == (MAX_DEPTH + 2, 5)
    assert (path[2], path[-1]) == ("outermost", "innermost")
    assert LEFT_OUT.replace(" ", "_") in path
    monkeypatch.setattr(tallies, "MAX_NODES", 300)
    monkeypatch.setattr(tallies, "MAX_PLACES", 10)
    for number in range(1000):
        tally.add(F, frames(f"other{number}", "outermost"), 1, 1)
    nodes = [node for root in tally.roots.values() for node in root.walk()]
    assert len(nodes) <= 301
    assert sum(len(node.places) for node in nodes) <= 11
    assert sum(node.fuel for node in nodes) == 1005 == tally.fuel
