"""Numbers as people read them."""

from __future__ import annotations

import math


def size(number: float | None) -> str:
    """``3.4 MiB``."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def seconds(number: float | None) -> str:
    """``12 µs``, ``3.4 ms``, ``5.6 s``, ``2 h 03 min``."""
    if number is None or number == math.inf:
        return "never" if number == math.inf else "-"
    if number == 0:
        return "0 s"
    if number < 1e-3:
        return f"{number * 1e6:.0f} µs"
    if number < 1:
        return f"{number * 1e3:.1f} ms"
    if number < 120:
        return f"{number:.1f} s"
    minutes = int(number // 60)
    if minutes < 120:
        return f"{minutes} min {number % 60:02.0f} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def rate(number: float | None) -> str:
    """``97.12 %``."""
    return "-" if number is None else f"{number:.2%}".replace("%", " %")
