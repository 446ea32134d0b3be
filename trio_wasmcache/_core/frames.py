"""Frames of a guest's stack, as errors show them."""

from __future__ import annotations

from attrs import field, frozen

from .._public import public


@public
@frozen
class Frame:
    """One function of the guest that was running when a call failed; see `GuestError.frames`."""

    function: str
    """Name of the function, demangled and cut. In a module without names, that of its export, or
    such as ``"func[7]"``."""
    offset: int | None = None
    """Position of the instruction in the bytes given to `register`; None if it is not known."""
    file: str | None = None
    """Path of the source file, as the compiler wrote it into the module's DWARF sections; None if
    there are none, or they were not read yet."""
    line: int | None = None
    """Line in the file, from 1; None if it is not known."""
    column: int | None = None
    """Column in the line, from 1; None if it is not known."""
    place: tuple[bytes, int, int] | None = field(default=None, eq=False, repr=False)
    """For core dumps: name of the part of a graph (empty: there is one module), index of the
    function, and position of the instruction in the function's body. None if it is not known."""

    def __str__(self) -> str:
        text = self.function if self.offset is None else f"{self.function} at {self.offset:#x}"
        if self.file is None:
            return text
        places = (place for place in (self.line, self.column) if place is not None)
        return f"{text} ({':'.join([self.file, *map(str, places)])})"
