"""Sequence numbers: gaps, repeats, lateness; events in their order, whichever way they come."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, strategies as st
from report.logs import Log

from trio_wasmcache._core.events import Lost, Stamped
from trio_wasmcache.report.reading import order as module
from trio_wasmcache.report.reading.order import Line, Order
from trio_wasmcache.report.reading.records import make_event

# Numbers in blocks, as they come out of files.
BLOCKS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), max_size=8)


def numbered(seq: int) -> Stamped:
    return Stamped(Lost(count=1, first_seq=1), "c", seq, 0.0)


def sort(order: Order, numbers: list[int]) -> list[int]:
    frame = pl.DataFrame({"seq": numbers, "place": range(len(numbers))})
    sorted_numbers: list[int] = order.sort(frame)["seq"].to_list()
    return sorted_numbers


@given(BLOCKS)
def test_each_event_comes_once(blocks: list[list[int]]) -> None:
    """Whatever the order, each number comes out once, in order within its block, and what never
    came is missing."""
    order, seen = Order(), set()
    for block in blocks:
        out = sort(order, block)
        assert out == sorted({*block} - seen)
        seen |= {*out}
    if seen:
        assert (order.first, order.last) == (min(seen), max(seen))
        assert order.missing == max(seen) - min(seen) + 1 - len(seen)
        assert order.repeated == sum(map(len, blocks)) - len(seen)
        missing = {one for first, last in order.gaps for one in range(first, last + 1)}
        assert missing == {*range(min(seen), max(seen))} - seen
        assert order.gaps == sorted(order.gaps)


def test_a_reason_of_a_later_version_waits_for_its_turn_as_well() -> None:
    """It stays a text, and is counted as one."""
    log = Log()
    for _ in range(3):
        log.evicted(1.5)
    events = [make_event({**fields, "reason": "whim"}) for fields in log.lines]
    line = Line()
    found = [*line.put(events[1]), *line.put(events[2]), *line.put(events[0]), *line.end()]
    assert found == events


@given(BLOCKS)
def test_lines_and_frames_agree(blocks: list[list[int]]) -> None:
    """Events that come one by one come out in order, and the same are missing."""
    order, line = Order(), Line()
    events: list[Stamped] = []
    for block in blocks:
        sort(order, block)
        for number in block:
            events += line.put(numbered(number))
    events += line.end()
    numbers = [event.seq for event in events]
    assert numbers == sorted({number for block in blocks for number in block})
    assert line.order.gaps == order.gaps
    assert line.order.repeated == order.repeated


@pytest.mark.parametrize(
    ("blocks", "late", "repeated", "gaps"),
    [
        ([[1, 2, 3], [4, 5]], 0, 0, []),
        ([[1, 3, 2], [4]], 1, 0, []),
        ([[1, 2, 5], [3, 4, 6]], 2, 0, []),
        ([[1, 2], [2, 3]], 1, 1, []),
        ([[1, 2, 2, 3]], 0, 1, []),
        ([[1, 4, 9]], 0, 0, [(2, 3), (5, 8)]),
        ([[1, 9], [5]], 1, 0, [(2, 4), (6, 8)]),
        ([[7, 8]], 0, 0, []),
        ([[7, 8], [3, 4]], 2, 0, [(5, 6)]),
    ],
    ids=str,
)
def test_what_is_counted(
    blocks: list[list[int]], late: int, repeated: int, gaps: list[tuple[int, int]]
) -> None:
    """Late is what comes after a higher number, repeated what was there, a gap what never came."""
    order = Order()
    for block in blocks:
        sort(order, block)
    assert (order.late, order.repeated, order.gaps) == (late, repeated, gaps)


def test_what_the_cache_lost_is_not_missing() -> None:
    """It says which numbers it dropped; only others are a flaw of the log."""
    order = Order()
    sort(order, [1, 2, 6, 8, 10])
    order.lose(3, 3)  # told in 6
    assert order.lost == 3
    assert order.gaps == [(7, 7), (9, 9)]
    assert order.missing == 2
    order.lose(4, 6)  # of which it got some out: a log that contradicts itself
    assert order.gaps == []
    assert order.missing == 0
    order.lose(2, 50)  # of a part of the log that is not there
    assert order.missing == 0


def test_gaps_without_end_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are no longer known one by one, and their number is."""
    monkeypatch.setattr(module, "MAX_GAPS", 10)
    order = Order()
    sort(order, list(range(1, 101, 2)))
    assert len(order.gaps) <= 10
    assert order.missing == 49
    sort(order, [98])
    assert order.missing == 48
    sort(order, [2])  # forgotten: taken for one that was there
    assert (order.missing, order.repeated) == (48, 1)
    order.lose(10, 4)
    assert order.missing == 38


def test_a_late_event_is_waited_for() -> None:
    """For as many events as the window has; then they go on without it."""
    line = Line()
    out: list[int] = []
    for number in (1, 2, 4, 5, 3, 7, 8, 9, 10, 11, 12, 6, 13):
        out += [event.seq for event in line.put(numbered(number), window=5)]
    out += [event.seq for event in line.end()]
    assert out == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
    assert line.order.gaps == [(6, 6)]
    assert (line.order.late, line.order.repeated) == (2, 1)
