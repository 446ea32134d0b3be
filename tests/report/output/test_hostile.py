"""Names, messages and guests' words from a log are text on a terminal, whatever is asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report.logs import busy_log, run_command, text_of
from report.questions import Lines, lines_of_all
from rich.cells import cell_len

EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m[red]x[/red][link=http://e]k[/link]\r\n\u202e\u2066\ufeff\0</script>",
    "漢字" * 100,
    "a" * 200,
)
TEXTS = (
    *("function", "arg_types", "group", "error", "error_message", "line", "reason", "label"),
    *("for_function", "for_arg_types", "for_group", "cache", "timestamp", "trace"),
)
CONTROLS = re.compile(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("report",),
    ("report", "--by-cache"),
    ("report", "--slowest", "9"),
    ("report", "--slowest", "9", "--events"),
    ("report", "--where", "hit=false"),
    ("report", "--where", "hit=false", "--events"),
    ("replay",),
    ("whatif", "--max-size", "1MiB"),
    ("tune", "--no-check"),
)


@pytest.mark.parametrize("lines", [lines_of_all(), busy_log(rounds=6).lines], ids=["all", "busy"])
@pytest.mark.parametrize("evil", EVIL, ids=["controls", "wide", "long"])
def test_no_text_of_a_log_controls_a_terminal(
    evil: str, lines: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No control character gets out, and no line is wider than 80 columns."""
    path = tmp_path / "log"
    changed = [
        {name: f"{it}{evil}" if name in TEXTS and it else it for name, it in line.items()}
        for line in ({**line, "trace": "x"} for line in lines)
    ]
    others = [{**changed[3], "schema": evil}, {**changed[3], "event": f"wasmcache.{evil}"}]
    path.write_text(text_of([*changed, *others]))
    asked = (
        *QUESTIONS,
        ("report", "--where", f"trace=x{evil}"),
        ("report", "--where", f"{evil}=1"),
    )
    for question in (*asked, ("report", "--cache", evil)):
        ran = run_command(capsys, *question, path)
        assert not CONTROLS.search(ran.out + ran.err), question
        assert max(map(cell_len, ran.out.split("\n"))) <= 80, question
