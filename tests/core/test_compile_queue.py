"""Who compiles next: one for each group, groups in turn, the oldest of a group first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.compile_queue import CompileQueue


def test_the_whole_of_a_queue() -> None:
    """Two run at a time, never two of one group; then each group that waits gets one."""
    queue = CompileQueue[str, str](2)
    assert queue.add("a1", ["a"]) == ["a1"]
    assert queue.add("a2", ["a"]) == []
    assert queue.add("a3", ["a"]) == []
    assert queue.add("b1", ["b"]) == ["b1"]
    assert queue.add("b2", ["b"]) == []
    assert queue.add("c1", ["c"]) == []
    assert (queue.running, queue.waiting) == (2, 4)
    assert queue.finish("a1") == ["c1"]
    assert queue.finish("c1") == ["a2"]
    assert queue.finish("b1") == ["b2"]
    assert queue.finish("b2") == []  # `a` has one running
    assert queue.finish("a2") == ["a3"]
    assert queue.finish("a3") == []
    assert (queue.running, queue.waiting) == (0, 0)


def test_one_who_gives_up_leaves_nothing() -> None:
    """Neither in the line of its group, nor the group among those that are ready."""
    queue = CompileQueue[str, str](1)
    queue.add("a1", ["a"])
    queue.add("b1", ["b"])
    queue.add("c1", ["c"])
    queue.withdraw("b1")
    assert not queue.is_waiting("b1")
    assert queue.finish("a1") == ["c1"]
    assert queue.finish("c1") == []
    assert vars(queue) == vars(CompileQueue[str, str](1))


def test_one_wanted_by_two_groups_runs_in_the_first_turn() -> None:
    """And waits in neither any more."""
    queue = CompileQueue[str, str](1)
    queue.add("a1", ["a"])
    queue.add("a2", ["a"])
    queue.add("a3", ["a"])
    assert queue.join("a3", "b") == []
    assert queue.finish("a1") == ["a3"]
    assert queue.finish("a3") == ["a2"]
    assert queue.finish("a2") == []
    assert vars(queue) == vars(CompileQueue[str, str](1))


def test_joining_may_start_it() -> None:
    """There is a free slot, and its own group has one running."""
    queue = CompileQueue[str, str](2)
    queue.add("a1", ["a"])
    assert queue.add("a2", ["a"]) == []
    assert queue.join("a2", "b") == ["a2"]


def test_a_ticket_is_used_once_at_a_time() -> None:
    """One that runs or waits can't be added; nothing has changed."""
    queue = CompileQueue[str, str](1)
    queue.add("a", ["g"])
    queue.add("b", ["g"])
    for ticket in "ab":
        with pytest.raises(ValueError, match="already"):
            queue.add(ticket, ["h"])
    assert queue.clear() == ["b"]
    assert queue.finish("a") == []


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=80))
@tries(200)
def test_it_is_fair(slots: int, steps: list[tuple[int, int]]) -> None:
    """No slot idles while a group is ready; oldest first; at most one of each other in between."""
    queue = CompileQueue[int, int](slots)
    running: dict[int, int] = {}
    lines: dict[int, list[int]] = {}
    since: dict[int, list[int]] = {}  # {ready group: groups that were started since}
    made = 0

    def take(started: list[int]) -> None:
        for ticket in started:
            group = ticket % 10
            assert lines[group].pop(0) == ticket
            running[ticket] = group
            for other, before in since.items():
                if other != group:
                    assert group not in before
                    before.append(group)
            since.pop(group, None)

    for group, kind in steps:
        waiting: list[Any] = [one for line in lines.values() for one in line]
        if kind < 2:
            ticket, made = made * 10 + group, made + 1
            lines.setdefault(group, []).append(ticket)
            if group not in running.values():
                since.setdefault(group, [])
            take(queue.add(ticket, [group]))
        elif kind == 2 and running:
            ticket = sorted(running)[group % len(running)]
            over = running.pop(ticket)
            if lines[over]:
                since[over] = []
            take(queue.finish(ticket))
        elif kind == 3 and waiting:
            ticket = waiting[group % len(waiting)]
            queue.withdraw(ticket)
            lines[ticket % 10].remove(ticket)
            if not lines[ticket % 10]:
                since.pop(ticket % 10, None)
        assert len(set(running.values())) == len(running) == queue.running <= slots
        ready = [g for g, line in lines.items() if line and g not in running.values()]
        assert not ready or len(running) == slots
        assert queue.waiting == sum(map(len, lines.values()))
