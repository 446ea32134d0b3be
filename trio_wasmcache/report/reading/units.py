"""Formats numbers for people."""

from __future__ import annotations

import datetime
import math
import re

# Characters of a timestamp that is no valid time.
MAX_MOMENT = 32


def size(number: float | None) -> str:
    """Return bytes as text: ``3.4 MiB``."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < (1024 if unit == "B" else 999.95):
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def seconds(number: float | None) -> str:
    """Return ``12 µs``, ``3.4 ms``, ``5.6 s``, ``3 min 20 s``, ``2 h 03 min`` or ``4 d 20 h``.

    An infinite time is ``never``.
    """
    if number is None or number == math.inf:
        return "-" if number is None else "never"
    if number == 0:
        return "0 s"
    if number < 0.9995e-3:
        return f"{number * 1e6:.0f} µs"
    if number < 0.9995:
        return f"{number * 1e3:.{1 if number < 0.0995 else 0}f} ms"
    if number < 119.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(number / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(number / 3600)
    return f"{hours // 24:,} d {hours % 24:02} h"


def rate(number: float | None) -> str:
    """Return per cent: ``97.1 %``; 100 % and 0 % only if that is exact."""
    if number is None:
        return "-"
    text = f"{number:.1%}"
    if number < 1 and text == "100.0%":
        text = ">99.9%"
    elif number > 0 and text == "0.0%":
        text = "<0.1%"
    return text.replace("%", " %")


def short(number: float) -> str:
    """Return a count in few characters: ``99,999``, ``123k``, ``4.5M``."""
    if number < 100_000:
        return f"{number:,.0f}"
    for unit in ("k", "M"):
        number /= 1000
        if number < 9.995:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number / 1000:,.1f}G"


def moment(timestamp: str, *, exact: bool = False) -> str:
    """Return a structlog timestamp (ISO 8601, or seconds since 1970): ``2026-11-24 10:00:05Z``.

    Args:
        timestamp: the timestamp.
        exact: whether to add milliseconds, as far as it has them: ``2026-11-24 10:00:05.123Z``.
    """
    found = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:?\d\d)?",
        timestamp,
        re.ASCII,
    )
    if found:
        parts = f".{found[3][:3]}" if exact and found[3] else ""
        return f"{found[1]} {found[2]}{parts}{found[4] or ''}"
    try:
        at = datetime.datetime.fromtimestamp(float(timestamp), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return timestamp
    parts = f".{at.microsecond // 1000:03}" if exact else ""
    return f"{at:%Y-%m-%d %H:%M:%S}{parts}Z"


def soon(within: float | None, within_idle: float | None = None) -> str:
    """Return the definition of thrash: a load `within` seconds of an eviction; None: any load.

    After an eviction for time, that is `within_idle` seconds, if this is given.
    """
    if within is None:
        return "after they went"
    more = "" if within_idle in {None, within} else f" ({within_idle:g} s if for idle)"
    return f"within {within:g} s of going{more}"
