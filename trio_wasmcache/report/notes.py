"""What was wrong with the input: a line each on standard error, and what it means for the exit.

0: all was read. 1: analysed, but something was missing or damaged, or the books disagree. 2: there
was nothing to analyse, or the question was wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import Factory, define

FINE, FLAWED, NOTHING = 0, 1, 2
# More of the same says nothing new.
MAX_TOLD = 20


@define
class Notes:
    """Remarks and problems, told as they come up and kept for the report."""

    say: Callable[[str], None]
    texts: list[str] = Factory(list)
    status: int = FINE

    def remark(self, text: str) -> None:
        """Good to know; nothing is wrong with the analysis."""
        self.texts.append(text)
        if len(self.texts) <= MAX_TOLD:
            self.say(text)
        elif len(self.texts) == MAX_TOLD + 1:
            self.say("and more of that kind")

    def problem(self, text: str) -> None:
        """Something is missing or damaged: the rest is analysed, and the exit status says so."""
        self.status = FLAWED
        self.remark(text)


def count(number: int, one: str, many: str = "") -> str:
    """``1 line``, ``2 lines``, ``12,000 lines``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
