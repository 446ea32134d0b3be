"""Adds up the samples of one profile, in a tree of functions that call each other.

1. A *node* is a function that was called along one path. A sample adds its fuel to the node of the
   innermost function; that of all others follows from it.
2. Samples of different groups and functions have trees of their own, so the fuel of each is known.
3. All that a guest can make this keep is bounded: a path has `MAX_DEPTH` functions, of which the
   middle ones are left out, and all trees together have `MAX_NODES` nodes. What finds no node adds
   its fuel to the last one on its path that is there. No fuel is lost by that.
4. Within a node, fuel is known by place, of which there are `MAX_PLACES` in all nodes together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, final

from attrs import define, evolve, field, frozen

from ..frames import Frame
from ..keys import FunctionKey

MAX_DEPTH: Final = 200
"""Functions on one path, at most."""
MAX_NODES: Final = 50_000
"""Nodes of one profile, at most: some 10 MB."""
MAX_PLACES: Final = 50_000
"""Pairs of a node and a place in the module, at most."""
LEFT_OUT: Final = "(functions left out)"
"""Name of what stands for the middle of a path that is too deep."""


@frozen
class Origin:
    """Whose calls samples are of."""

    group: str
    """Name of the group in which the function was called."""
    key: FunctionKey
    module: int
    """Number of the module in which the samples were taken: offsets refer to it."""

    @property
    def function(self) -> str:
        """Function that was called, with the types of its arguments."""
        return str(self.key)


@final
@define(eq=False)
class Node:
    """A function on one path."""

    name: str
    """Readable name of the function; of the outermost node, of the registered function."""
    parent: Node | None = field(default=None, repr=False)
    fuel: int = 0
    """Units for which the samples stand that were taken in the function itself."""
    samples: int = 0
    """Number of these samples."""
    places: dict[Frame, tuple[int, int]] = field(factory=dict)
    """{frame: (fuel, samples)} by place in the function, as far as they are known."""
    calls: dict[str, Node] = field(factory=dict, repr=False)
    """{name: node} of the functions that it calls."""

    def total(self) -> int:
        """Return the fuel of the function and of all that it called, in units."""
        return sum(node.fuel for node in self.walk())

    def walk(self) -> Iterable[Node]:
        """Yield the node, and all below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.calls.values())

    def path(self) -> list[Node]:
        """Return the nodes from the outermost one to this."""
        found, node = [self], self.parent
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


@final
class ProfileTally:
    """The samples of one profile."""

    def __init__(self) -> None:
        self.roots: dict[Origin, Node] = {}
        """{origin: its outermost node}."""
        self.fuel: int = 0
        """Units for which all samples stand."""
        self.samples: int = 0
        """Number of samples."""
        self.lost_fuel: int = 0
        """Units of samples that could not be read."""
        self.over: bool = False
        """Whether no more samples are wanted."""
        self._nodes = self._places = 0

    def close(self) -> None:
        """Take no more samples: the profile is over."""
        self.over = True

    def of_function(self, key: FunctionKey) -> tuple[int, int]:
        """Return the number of samples of a function, and their fuel, in all groups."""
        roots = [root for origin, root in self.roots.items() if origin.key == key]
        nodes = [node for root in roots for node in root.walk()]
        return sum(node.samples for node in nodes), sum(node.fuel for node in nodes)

    def samples_of(self, origin: Origin) -> StackSamples:
        """Return what adds the samples of an origin."""
        return StackSamples(self, origin)

    def add(self, origin: Origin, frames: Sequence[Frame], fuel: int, samples: int) -> None:
        """Add samples with the same stack.

        Args:
            origin: whose they are.
            frames: the functions, the innermost first.
            fuel: units for which they stand.
            samples: number of them.
        """
        if self.over:
            return
        self.fuel += fuel
        self.samples += samples
        node = self.roots.get(origin)
        if node is None:
            node = self.roots[origin] = Node(origin.function)
        path = cut_path(frames)
        leaf: Frame | None = None
        for frame in path:
            found = node.calls.get(frame.function)
            if found is None:
                if self._nodes >= MAX_NODES:
                    leaf = None
                    break
                self._nodes += 1
                found = node.calls[frame.function] = Node(frame.function, node)
            node, leaf = found, frame
        node.fuel += fuel
        node.samples += samples
        if leaf is None or leaf.offset is None:
            return
        place = node.places.get(leaf)
        if place is None:
            if self._places >= MAX_PLACES:
                return
            self._places += 1
            place = 0, 0
        node.places[leaf] = place[0] + fuel, place[1] + samples

    def lose(self, fuel: int) -> None:
        """Note that a sample could not be read, and the units for which it stood."""
        if not self.over:
            self.lost_fuel += fuel

    def offsets(self) -> dict[int, list[int]]:
        """Return {number of a module: offsets of all places in it}."""
        found: dict[int, dict[int, None]] = {}
        for origin, root in self.roots.items():
            offsets = found.setdefault(origin.module, {})
            for node in root.walk():
                offsets.update((one.offset, None) for one in node.places if one.offset is not None)
        return {module: sorted(offsets) for module, offsets in found.items() if offsets}

    def locate(self, module: int, lines: Mapping[int, tuple[str, int, int | None]]) -> None:
        """Add source lines to the places in a module.

        Args:
            module: its number.
            lines: {offset: (file, line, column)}.
        """
        for origin, root in self.roots.items():
            if origin.module != module:
                continue
            for node in root.walk():
                node.places = {
                    _located(frame, lines): counts for frame, counts in node.places.items()
                }


def _located(frame: Frame, lines: Mapping[int, tuple[str, int, int | None]]) -> Frame:
    found = None if frame.offset is None else lines.get(frame.offset)
    if found is None:
        return frame
    return evolve(frame, file=found[0], line=found[1], column=found[2])


def cut_path(frames: Sequence[Frame]) -> list[Frame]:
    """Return a stack with the outermost frame first, without the middle if it is too deep."""
    if len(frames) <= MAX_DEPTH:
        return list(reversed(frames))
    half = MAX_DEPTH // 2
    inner, outer = frames[: half - 1], frames[len(frames) - half :]
    return [*reversed(outer), Frame(LEFT_OUT), *reversed(inner)]


@final
@frozen
class StackSamples:
    """Adds the samples of one origin to a tally: see `base.Samples`."""

    tally: ProfileTally
    origin: Origin

    @property
    def over(self) -> bool:
        """Whether no more samples are wanted."""
        return self.tally.over

    def add(self, frames: Sequence[Frame], fuel: int, samples: int) -> None:
        """See `ProfileTally.add`."""
        self.tally.add(self.origin, frames, fuel, samples)

    def lose(self, fuel: int) -> None:
        """See `ProfileTally.lose`."""
        self.tally.lose(fuel)
