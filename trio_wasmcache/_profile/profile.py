"""What a profile found, as users have it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import final

from attrs import field, frozen

from .._core.profiles.collapsed import collapsed_lines
from .._core.profiles.firefox import firefox_profile
from .._core.profiles.tally import ProfileTally
from .._public import public
from .page import page


@public
@final
@frozen(eq=False, kw_only=True, repr=False)
class Profile:
    """Where guests burnt their fuel, from `InstanceCache.profile`.

    .. code-block::

        profile = await cache.profile(seconds=10)
        profile.save("guests.json")  # for https://profiler.firefox.com
        Path("guests.html").write_text(profile.html(), encoding="utf-8")

    Samples stand for units of fuel, not for time. They are taken in loops and at the beginning of
    functions, so the fuel that a function burns before it calls another one may be counted for that
    one. A profile does not change any more; any thread may use it.
    """

    seconds: float
    """Time between its beginning and its end (seconds)."""
    started_at: float = field(repr=False)
    """Time at which it began (seconds since 1970)."""
    label: str = ""
    """Label of the cache; see `open_cache`."""
    skipped: dict[str, str] = field(factory=dict, repr=False)
    """``{function: reason}`` of the functions that could not be profiled."""
    _tally: ProfileTally = field(repr=False)

    def __repr__(self) -> str:
        label = f" {self.label!r}" if self.label else ""
        count = len(self.skipped)
        skipped = f", {count} function{'s' * (count != 1)} skipped" if count else ""
        return (
            f"<Profile{label} of {self.seconds:.1f} s: {self.samples:,} samples of "
            f"{self.fuel:,} units of fuel{skipped}>"
        )

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self._tally.samples

    @property
    def fuel(self) -> int:
        """Units of fuel for which the samples stand, with those of `lost_fuel`."""
        return self._tally.fuel + self._tally.lost_fuel

    @property
    def lost_fuel(self) -> int:
        """Units of fuel of samples that could not be read."""
        return self._tally.lost_fuel

    @property
    def fuel_by_group(self) -> dict[str, int]:
        """``{group: units of fuel}``."""
        found: dict[str, int] = {}
        for origin, root in self._tally.roots.items():
            found[origin.group] = found.get(origin.group, 0) + root.total()
        return found

    @property
    def fuel_by_function(self) -> dict[str, int]:
        """``{function of the guest: units of fuel}`` that it burnt itself, the most first."""
        found: dict[str, int] = {}
        for root in self._tally.roots.values():
            for node in root.walk():
                if node.parent is not None and node.fuel:
                    found[node.name] = found.get(node.name, 0) + node.fuel
        return dict(sorted(found.items(), key=lambda it: -it[1]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON for the Firefox Profiler, https://profiler.firefox.com.

        The profiler shows each group as a process, and each function in it as a thread, whose time
        line is guest time. It works in the browser, and keeps what it reads there.

        Args:
            path: the file; one that is there is replaced.

        Raises:
            OSError: the file can't be written.
        """
        product = f"trio_wasmcache {self.label}".strip()
        profile = firefox_profile(self._tally, product, self.started_at)
        # Lone surrogates of names, too, as escapes.
        Path(path).write_text(json.dumps(profile, separators=(",", ":")), encoding="ascii")

    def collapsed(self) -> str:
        """Return collapsed stacks, a line each, for flame graphs by other tools.

        A line is ``group;function;callee;callee 4711``: a path and the units of fuel. In names,
        ``;`` is ``:``, and white space is ``_``.
        """
        return "".join(f"{line}\n" for line in collapsed_lines(self._tally))

    def html(self) -> str:
        """Return a page with a flame graph, in which functions, files and lines can be searched.

        It needs no network, and follows the browser's choice of light or dark.
        """
        notes = [f"{name} was not profiled: {reason}" for name, reason in self.skipped.items()]
        if self.lost_fuel:
            notes.append(f"samples of {self.lost_fuel:,} units of fuel could not be read")
        if not self.samples:
            notes.append(
                "there are no samples: nothing that was profiled was called, or too little"
            )
        title = f"What the guests of {self.label} do" if self.label else "What the guests do"
        groups = len(self.fuel_by_group)
        subtitle = (
            f"{self.samples:,} samples of {self.fuel:,} units of fuel in {self.seconds:.1f} s, in "
            f"{groups:,} group{'s' * (groups != 1)}"
        )
        return page(self._tally, title, subtitle, notes)
