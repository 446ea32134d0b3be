"""Problems of the input: one line each on standard error, and the exit status.

0: everything was read. 1: analysed, but something was missing or damaged, or the books disagree.
2: there was nothing to analyse, or the command line was wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import Factory, define

FINE, FLAWED, NOTHING = 0, 1, 2
# Number of notes; further ones of the same kind add nothing.
MAX_TOLD = 20
# Characters of a name from a log that are shown.
MAX_CITED = 120


@define
class Notes:
    """Remarks and problems, printed as they occur and kept for the report."""

    say: Callable[[str], None]
    texts: list[str] = Factory(list)
    status: int = FINE

    def remark(self, text: str) -> None:
        """Note a fact that does not affect the analysis."""
        if len(self.texts) < MAX_TOLD:
            self.texts.append(text)
            self.say(text)
        elif len(self.texts) == MAX_TOLD:
            self.texts.append("and more of that kind")
            self.say(self.texts[-1])

    def problem(self, text: str) -> None:
        """Note that something is missing or damaged; the rest is analysed, with exit status 1."""
        self.status = FLAWED
        self.remark(text)


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 line``, ``2 lines``, ``12,000 lines``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def cite(text: str, most: int = MAX_CITED) -> str:
    """Return a name from a log made safe to show: cut, and without control characters.

    Anyone who registers functions chooses names. Escape sequences, line breaks and characters that
    change the direction of writing are not printable, and shown as ``\\x1b`` and so on.
    """
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
