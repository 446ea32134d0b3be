"""Writes a profile in the processed format of the Firefox Profiler, version 55.

https://github.com/firefox-devtools/profiler/blob/main/docs-developer/processed-profile-format.md

1. Each group is a process of its own, and each function in it a thread. Samples of a thread have
   their fuel as weight. The profiler shows them as a time line: there, a sample is as long after
   the one before as its fuel takes at the rate by which groups are charged. So the time line is one
   of guest time, and not when the samples were taken.
2. A table is an object of columns of one length. Texts are numbers in `stringArray`, which is the
   thread's own. Rows refer to each other by number, and prefixes of stacks come before the stacks.
3. Functions have the file in which most of their fuel was burnt, where source lines are known.
"""

from __future__ import annotations

from typing import Any, Final, final

from ..frames import Frame
from ..policy.shares import FUEL_PER_SECOND
from .names import shown_name
from .tally import Node, Origin, ProfileTally

VERSION: Final = 55
_GECKO: Final = 24
_FUEL_PER_MS: Final = FUEL_PER_SECOND / 1000
_CATEGORY: Final = 0


def firefox_profile(tally: ProfileTally, product: str, started_at: float) -> dict[str, Any]:
    """Return the profile, to be written as JSON.

    Args:
        tally: the samples.
        product: name of what was profiled.
        started_at: when it began (seconds since 1970).
    """
    groups: dict[str, int] = {}
    threads = []
    for number, (origin, root) in enumerate(tally.roots.items(), 1):
        main = origin.group not in groups
        process = groups.setdefault(origin.group, len(groups) + 1)
        threads.append(_Thread(process, number, origin, main=main).fill(root))
    return {
        "meta": {
            "categories": [
                {"name": "Guest", "color": "blue", "subcategories": ["Other"]},
            ],
            "debug": False,
            "extensions": {"baseURL": [], "id": [], "length": 0, "name": []},
            "interval": 1.0,
            "markerSchema": [],
            "preprocessedProfileVersion": VERSION,
            "processType": 0,
            "product": shown_name(product),
            "sampleUnits": {"eventDelay": "ms", "threadCPUDelta": "µs", "time": "ms"},
            "startTime": started_at * 1000,
            "stackwalk": 1,
            "symbolicated": True,
            "usesOnlyOneStackType": True,
            "sourceCodeIsNotOnSearchfox": True,
            "version": _GECKO,
        },
        "libs": [],
        "pages": [],
        "counters": [],
        "profilerOverhead": [],
        "threads": threads,
    }


@final
class _Texts:
    """The texts of a thread."""

    def __init__(self) -> None:
        self.all: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.all.setdefault(shown_name(text), len(self.all))


@final
class _Thread:
    """The tables of one function in one group."""

    def __init__(self, process: int, number: int, origin: Origin, *, main: bool) -> None:
        self._process, self._number, self._origin, self._main = process, number, origin, main
        self._texts = _Texts()
        self._functions: dict[str, int] = {}  # {name: row of funcTable}
        self._files: dict[str, tuple[str, int]] = {}  # {name of a function: (file, line)}
        self._frames: dict[tuple[str, int | None, int | None, int | None], int] = {}
        self._stacks: list[tuple[int | None, int]] = []  # (prefix, frame)
        self._samples: list[tuple[int, int]] = []  # (stack, fuel)

    def fill(self, root: Node) -> dict[str, Any]:
        """Return the thread, with all nodes of a tree."""
        waiting: list[tuple[Node, int | None]] = [(root, None)]
        while waiting:
            node, prefix = waiting.pop()
            plain = self._stack(prefix, self._frame(node.name, None))
            rest = node.fuel
            for frame, (fuel, _) in node.places.items():
                if frame.line is not None and fuel:
                    self._samples.append((self._stack(prefix, self._frame(node.name, frame)), fuel))
                    rest -= fuel
            if rest > 0:
                self._samples.append((plain, rest))
            self._note_file(node)
            waiting += [(one, plain) for one in node.calls.values()]
        return self._tables()

    def _note_file(self, node: Node) -> None:
        known = [frame for frame in node.places if frame.file is not None]
        if known and node.name not in self._files:
            frame = max(known, key=lambda one: node.places[one])
            self._files[node.name] = (
                frame.file or "",
                min(
                    (one.line for one in known if one.file == frame.file and one.line is not None),
                    default=1,
                ),
            )

    def _frame(self, name: str, frame: Frame | None) -> int:
        self._functions.setdefault(name, len(self._functions))
        key = (name, None, None, None)
        if frame is not None:
            key = (name, frame.line, frame.column, frame.offset)  # type: ignore[assignment]
        return self._frames.setdefault(key, len(self._frames))

    def _stack(self, prefix: int | None, frame: int) -> int:
        self._stacks.append((prefix, frame))
        return len(self._stacks) - 1

    def _tables(self) -> dict[str, Any]:
        texts, functions, origin = self._texts, self._functions, self._origin
        files = [self._files.get(name) for name in functions]
        names = [texts.number(name) for name in functions]
        file_names = [None if one is None else texts.number(one[0]) for one in files]
        frames = list(self._frames)
        return {
            "processType": "default",
            "processStartupTime": 0,
            "processShutdownTime": None,
            "registerTime": 0,
            "unregisterTime": None,
            "pausedRanges": [],
            "showMarkersInTimeline": False,
            "name": shown_name(origin.function),
            "processName": shown_name(origin.group),
            "isMainThread": self._main,
            "pid": str(self._process),
            "tid": self._number,
            "samples": {
                "length": len(self._samples),
                "weightType": "samples",
                "stack": [stack for stack, _ in self._samples],
                "timeDeltas": [fuel / _FUEL_PER_MS for _, fuel in self._samples],
                "weight": [fuel for _, fuel in self._samples],
                "threadCPUDelta": [int(fuel / _FUEL_PER_MS * 1000) for _, fuel in self._samples],
            },
            "markers": {
                "length": 0,
                **{
                    name: []
                    for name in ("category", "data", "endTime", "name", "phase", "startTime")
                },
            },
            "stackTable": {
                "length": len(self._stacks),
                "prefix": [prefix for prefix, _ in self._stacks],
                "frame": [frame for _, frame in self._stacks],
            },
            "frameTable": {
                "length": len(frames),
                "address": [-1] * len(frames),
                "inlineDepth": [0] * len(frames),
                "category": [_CATEGORY] * len(frames),
                "subcategory": [0] * len(frames),
                "func": [functions[name] for name, *_ in frames],
                "nativeSymbol": [None] * len(frames),
                "innerWindowID": [0] * len(frames),
                "line": [line for _, line, _, _ in frames],
                "column": [column for _, _, column, _ in frames],
            },
            "funcTable": {
                "length": len(names),
                "name": names,
                "isJS": [False] * len(names),
                "relevantForJS": [False] * len(names),
                "resource": [-1] * len(names),
                "fileName": file_names,
                "lineNumber": [None if one is None else one[1] for one in files],
                "columnNumber": [None] * len(names),
            },
            "resourceTable": {
                "length": 0,
                "lib": [],
                "name": [],
                "host": [],
                "type": [],
            },
            "nativeSymbols": {
                "length": 0,
                "address": [],
                "functionSize": [],
                "libIndex": [],
                "name": [],
            },
            "stringArray": list(texts.all),
        }
