"""Numbers as people read them, and the small books that they come from."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache.report.cli.session import parse_seconds, parse_size
from trio_wasmcache.report.reading.notes import cite
from trio_wasmcache.report.reading.units import moment, rate, seconds, short, size, soon
from trio_wasmcache.report.summary.histogram import Histogram
from trio_wasmcache.report.summary.series import BINS, Series

VALUES = st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=50)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (-2048, "-2.0 KiB")),
        *((1023 * 1024, "1.0 MiB"), (5 * 2**20, "5.0 MiB"), (2**30, "1.0 GiB")),
        *((2**40, "1.0 TiB"), (2**51, "2,048.0 TiB")),
    ],
)
def test_sizes(number: float | None, text: str) -> None:
    """In the largest unit of which there is one, about."""
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, "-"), (math.inf, "never"), (0, "0 s"), (1e-6, "1 µs"), (0.00099, "990 µs")),
        *((0.0009999, "1.0 ms"), (0.0123, "12.3 ms"), (0.123, "123 ms"), (0.9999, "1.0 s")),
        *((59.94, "59.9 s"), (119.94, "119.9 s"), (119.99, "2 min 00 s"), (200, "3 min 20 s")),
        *((7199.4, "119 min 59 s"), (7199.9, "2 h 00 min"), (47.5 * 3600, "47 h 30 min")),
        *((100 * 3600, "4 d 04 h"), (1e9, "11,574 d 02 h")),
    ],
)
def test_times(number: float | None, text: str) -> None:
    """In the unit that people would use; none is ever full of the next smaller one."""
    assert seconds(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, "-"), (0, "0.0 %"), (1, "100.0 %"), (0.5, "50.0 %"), (0.99951, ">99.9 %")),
        *((0.0001, "<0.1 %"), (0.001, "0.1 %")),
    ],
)
def test_rates(number: float | None, text: str) -> None:
    """All is all, and nothing is nothing."""
    assert rate(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (99_999, "99,999"), (100_000, "100k"), (999_499, "999k"), (999_501, "1.0M")),
        *((9_994_000, "10.0M"), (9_996_000, "10M"), (123_456_789, "123M"), (5e9, "5.0G")),
    ],
)
def test_short_counts(number: float, text: str) -> None:
    """In six letters at most, up to the thousand millions."""
    assert short(number) == text


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        ("2026-11-24T10:00:05.123456Z", "2026-11-24 10:00:05Z"),
        ("2026-11-24 10:00:05", "2026-11-24 10:00:05"),
        ("2026-11-24T10:00:05,5+02:00", "2026-11-24 10:00:05+02:00"),
        ("1700000000.5", "2023-11-14 22:13:20Z"),
        ("yesterday", "yesterday"),
        ("nan", "nan"),
        ("1e300", "1e300"),
    ],
)
def test_moments(stamp: str, text: str) -> None:
    """To the second; what is no time is shown as it is."""
    assert moment(stamp) == text


def test_what_counts_as_soon() -> None:
    """In words."""
    assert soon(2.5) == "within 2.5 s of going"
    assert soon(None) == soon(None, None) == "after they went"
    assert soon(10, 10) == "within 10 s of going"
    assert soon(10, 60) == "within 10 s of going (60 s if for idle)"


def test_cited_names() -> None:
    """Are cut, and nothing in them is invisible."""
    assert cite("näme") == "näme"
    assert cite("a\nb\x1b\u202e\ud800") == r"a\nb\x1b\u202e\ud800"
    assert cite("x" * 500) == "x" * 119 + "…"
    assert cite("x" * 500, 1000) == "x" * 500


def test_sizes_and_times_of_options() -> None:
    """As people write them."""
    assert parse_size("65536") == parse_size("64KiB") == parse_size(" 64 k ") == 65536
    assert parse_size("1.5MiB") == 3 * 2**19
    assert parse_size("2GB") == 2 * 10**9
    assert parse_seconds("2.5") == 2.5
    assert parse_seconds("inf") == math.inf
    for text in ("", "MiB", "-1", "64 parsecs", "1e3", "٣"):
        with pytest.raises(Exception, match="is no size"):
            parse_size(text)


@given(VALUES)
@tries(50)
def test_a_histogram(values: list[float]) -> None:
    """Counts are exact, quantiles right to 6 %, in one piece or in several."""
    histogram, whole = Histogram(), Histogram()
    for value in values:
        histogram.take(pl.Series([value, None], dtype=pl.Float64))
    whole.take(pl.Series(values, dtype=pl.Float64))
    assert histogram.as_dict() == pytest.approx(whole.as_dict())
    assert histogram.bars() == whole.bars()
    assert histogram.count == len(values) == sum(number for _, number in whole.bars())
    above = [value if value >= 1e-9 else 0 for value in values]
    assert histogram.total == pytest.approx(sum(above))
    assert histogram.largest == max(above, default=0)
    for part in (0.5, 0.95, 0.99, 1.0):
        exact = sorted(above)[max(0, math.ceil(part * len(values)) - 1)] if values else 0.0
        assert exact * 0.999999 <= histogram.quantile(part) <= exact * 1.06


def test_a_series_widens() -> None:
    """Whatever the order of widening, sums, peaks and last values are those of the wider bins."""
    numbers = random.Random(1)
    series = Series()
    events = sorted((numbers.uniform(0, 3000), numbers.randint(1, 9)) for _ in range(2000))
    for start in range(0, len(events), 37):
        part = events[start : start + 37]
        series.reach(part[-1][0])
        times = pl.Series([at for at, _ in part])
        values = pl.Series([value for _, value in part])
        series.add("sum", times, values)
        series.add("count", times)
        series.level("level", times, values, 9 - values)
    bins: dict[int, list[int]] = {}
    for at, value in events:
        bins.setdefault(int(at // series.width), []).append(value)
    count = int(series.end // series.width) + 1
    assert BINS / 2 < count <= BINS
    sums, counts, levels = (series.points(name) for name in ("sum", "count", "level"))
    assert len(sums) == len(counts) == len(levels) == count
    last = 0
    for number in range(count):
        inside = bins.get(number, [])
        assert (sums[number], counts[number]) == (sum(inside), len(inside))
        assert levels[number] == max([*inside, last])
        last = 9 - inside[-1] if inside else last
    busiest, width = series.busiest("sum", 2.5 * series.width)
    assert width == 2 * series.width
    assert busiest == max(sum(sums[number : number + 2]) for number in range(0, count, 2))
