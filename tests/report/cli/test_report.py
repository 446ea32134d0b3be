"""The report as people see it: on a terminal, in a pipe, and when the input is bad."""

from __future__ import annotations

import gzip
import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report.logs import Log, busy_log, run_command, text_of, without
from rich.cells import cell_len

from trio_wasmcache._core.events import Abandoned, Blocked, Closed, Failed, Reason
from trio_wasmcache.report.cli import session

NOT_JSON = "no events to analyse: the log names events, but not as JSON; write it with JSONRenderer"
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parent.parent.parent.parent
# What a name could do to a terminal, to rich and to a page.
HOSTILE = "\x1b[31m\x1b]0;owned\x07[bold red]x[/]<script>alert(1)</script>\u202e\r\n-->$x^2$ 100%s"


def report(capsys: Capture, *arguments: str | Path) -> Any:
    return run_command(capsys, "report", *arguments)


def full_log(name: str = "f", at: float = 100.0) -> Log:
    """A log with everything in it that the report tells of, with long and large things."""
    log = busy_log(rounds=30)
    log.loaded(at, name, 1234.5)
    for number, reason in enumerate([*Reason, *Reason][:15]):
        log.evicted(at + number, reason, f"tenant{number}/{name}", freed_bytes=2**40)
        log.recycled(at + number, f"tenant{number}/{name}", held_seconds=7199.0)
    of_f = {"function": name, "arg_types": "i64", "group": "main", "generation": 1}
    log.requested(at + 20, 10**6, name)
    log.add(at + 20, Blocked(**of_f, request=10**6, task=1, waits_for="an instance"))
    log.add(at + 22, Abandoned(**of_f, request=10**6, task=1, error="Cancelled"))
    failed = {"request": None, "error": "LoadError", "error_message": name}
    log.add(at + 22, Failed(**of_f, instance=1, **failed))
    return log


def test_the_report_in_a_pipe(tmp_path: Path, capsys: Capture) -> None:
    """Is plain text of at most 80 columns with every part of the story in it."""
    long = "a_rather_long_name_of_a_function_that_would_not_fit_into_any_column_of_a_table"
    path = full_log(long).write(tmp_path / "log")
    ran = report(capsys, path)
    assert (ran.status, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    lines = ran.out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    for part in (
        "Cache cafe0001",
        "hits, misses       50.0 % and 50.0 % of 60 leases",
        "waits              1.6 % of 61 acquires",
        "never reused       0 of 45 evicted",
        "thrash             27 loaded again within 10 s of going, in 3.4 s",
        "paid for evictions  27 loads, 3.4 s of 20 min 38 s spent loading",
        "Waited for: an instance 1",
        "Ended without a lease: Cancelled 1",
        "Loads that failed: 1",
        "Functions\n",
        "Groups (the first 10 of 16, by time spent loading)",
        "… - - - 1 20 min 34 s 15 0 0\n",
        "2.0 TiB",
    ):
        assert re.sub(" +", " ", part) in re.sub(" +", " ", ran.out), part
    shown = re.search(r"Evictions\nreason +count.*?\n\n", ran.out, re.DOTALL)
    assert shown
    assert re.findall(r"^(\w+) +\d+ ", shown[0], re.MULTILINE) == [one.value for one in Reason]


def test_the_requests_with_the_longest_times(tmp_path: Path, capsys: Capture) -> None:
    """Are named beside them, as `--where request=N` takes them."""
    log = busy_log()
    log.loaded(50, seconds=9.0, request=None)  # nobody's
    log.recycled(60, request=1_000_017, held_seconds=7199.0)
    out = report(capsys, log.write(tmp_path / "log")).out
    times = re.search(r"Times\n.*?\n\n", out, re.DOTALL)
    assert times
    rows = [line.split() for line in times[0].strip().splitlines()[1:]]
    assert (rows[0][0], rows[0][-2:]) == ("what", ["longest", "request"])
    assert [row[-1] for row in rows[1:]] == ["-", "0", "1000017", "-"]
    log = Log()
    log.opened()
    log.evicted(1)
    assert "request" not in report(capsys, log.write(tmp_path / "log")).out.split("Times")[1]


def test_more_rows(tmp_path: Path, capsys: Capture) -> None:
    """`--top` says how many functions and groups are shown."""
    path = full_log().write(tmp_path / "log")
    assert len(re.findall(r"^tenant\d+ ", report(capsys, path).out, re.MULTILINE)) == 9
    ran = report(capsys, "--top", "3", path)
    assert "Groups (the first 3 of 16, by time spent loading)" in ran.out
    assert len(re.findall(r"^tenant\d+ ", ran.out, re.MULTILINE)) == 2
    assert "(the first" not in report(capsys, "--top", "16", path).out


def test_a_log_without_uses(tmp_path: Path, capsys: Capture) -> None:
    """Says what it can: the cache's own counts, if it was closed, and else why there are none."""
    log = Log()
    log.opened()
    log.evicted(1)
    path = log.write(tmp_path / "log")
    assert "hits  not in this log, which was written without log_uses" in re.sub(
        " {3,}", "  ", report(capsys, path).out
    )
    log.add(2, Closed(hits=9, misses=1, blocks=0, calls=10, evictions=1))
    out = report(capsys, log.write(path)).out
    assert re.search(r"^hits +90.0 % of 10 leases, by the cache's own count$", out, re.MULTILINE)
    log.lines[-1].update(hits=0, misses=0)
    assert "hits                - of 0 leases" in report(capsys, log.write(path)).out


def test_a_cache_that_did_nothing(tmp_path: Path, capsys: Capture) -> None:
    """Is a short report, not a fault."""
    log = Log()
    log.opened()
    ran = report(capsys, log.write(tmp_path / "log"))
    assert (ran.status, ran.err) == (0, "")
    assert "No evictions." in ran.out
    assert "Functions" not in ran.out
    assert report(capsys, "--html", tmp_path / "page", tmp_path / "log").status == 0


def test_names_from_the_log_do_nothing(tmp_path: Path, capsys: Capture) -> None:
    """Neither to the terminal nor to rich: they are shown, what can't be as its code."""
    log = full_log(HOSTILE)
    log.cache = HOSTILE
    log.opened(200)
    log.loaded(201, HOSTILE, 10**6)
    rows = without(log.lines, 90)
    for row in rows:
        row["timestamp"] = row["label"] = HOSTILE
    rows += [{**rows[0], "event": f"wasmcache.{HOSTILE}"}, {**rows[0], "schema": HOSTILE}]
    path = tmp_path / "log"
    path.write_text(text_of(rows))
    ran = report(capsys, "--top", "50", "--by-cache", path)
    followed = report(capsys, "--where", f"label={HOSTILE}", path)
    for text in (ran.out, ran.err, followed.out):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert r"\x1b[31m\x1b]0;owned\x07[bol" in text
    assert "missing" in ran.err
    assert max(map(cell_len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("text", ["[/]", "[red]x"])
def test_texts_of_a_log_are_no_markup(text: str, tmp_path: Path, capsys: Capture) -> None:
    """Whichever field has it: rich would end in an error, or leave it out."""
    lines = [{**line, "timestamp": "now"} for line in full_log().lines]
    fields = {name for line in lines for name, value in line.items() if isinstance(value, str)}
    path = tmp_path / "log"
    for field in sorted(fields - {"event"}):
        path.write_text(text_of({**line, field: text} for line in lines if field in line))
        for question in (
            *(["report"], ["report", "--slowest", "3"], ["replay"]),
            *(["report", "--where", f"{field}={text}", *more] for more in ([], ["--events"])),
        ):
            ran = run_command(capsys, *question, path)
            if "--events" in question and field not in ("level", "module_digest"):
                assert text in ran.out, (field, question)


def test_a_terminal(tmp_path: Path) -> None:
    """Has colours, unless NO_COLOR is set, and at 80 columns no line is broken in two."""
    path = full_log().write(tmp_path / "log")
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        text = in_terminal(["report", str(path)], **variables)
        assert ("\x1b[2m" in text) or ("\x1b[1m" in text)  # dim, bold
        assert ("\x1b[3" in text) is False or coloured
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert "\x1b" not in plain
        assert max(map(cell_len, plain.splitlines())) <= 80


def in_terminal(arguments: list[str], **variables: str) -> str:
    """What a command writes into a terminal of 80 columns, both of its outputs."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color", **variables}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "trio_wasmcache", *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # that is how a terminal ends on Linux
                break
            if not part:
                break
            text += part
        os.close(ours)
        assert process.wait(600) == 0
    return text.decode()


def test_a_bar_while_a_large_file_is_read(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, if that is a terminal, and gone afterwards; small files need none."""
    path = full_log().write(tmp_path / "log")
    for bar_from, shown in ((1, True), (10**9, False)):
        monkeypatch.setattr(session, "BAR_FROM", bar_from)
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes anything for a terminal then
        ran = report(capsys, path)
        assert ("reading" in ran.err) is shown
        assert "reading" not in ran.out
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setattr(session, "BAR_FROM", 1)
    assert report(capsys, path).err == ""


def test_standard_input_with_a_bar(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose size nobody knows."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    packed = gzip.compress(busy_log().text().encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(packed)))
    ran = report(capsys, "--json", "-")
    assert ran.status == 0
    assert "reading" in ran.err
    assert ran.document["files"] == ["-"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the log is empty"),
        (b"\n\n", "the log is empty"),
        (b"hello\n", "no events to analyse"),
        (os.urandom(3000), "no events to analyse"),
        (
            b"2026-01-01 wasmcache.evicted reason=size\n",
            NOT_JSON,
        ),
        (b'{"event": "wasmcache.opened", "schema": 2}\n', "no events to analyse"),
        (b'{"event": "wasmcache.opened"', "no events to analyse"),
        (b"\x1f\x8b\x08", "the log is empty"),
    ],
    ids=["empty", "blank", "foreign", "garbage", "not JSON", "schema", "half", "cut gzip"],
)
def test_nothing_to_analyse(content: bytes, told: str, tmp_path: Path, capsys: Capture) -> None:
    """Exits with 2, says why, and prints nothing else."""
    path = tmp_path / "log"
    path.write_bytes(content)
    ran = report(capsys, path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == told


def test_nothing_in_which_to_look(tmp_path: Path, capsys: Capture) -> None:
    """A condition is told the same of an empty log as the other questions are."""
    path = tmp_path / "log"
    path.write_text("")
    for question in ([], ["--slowest", "3"], ["--where", "a=b"]):
        ran = report(capsys, *question, path)
        assert (ran.status, ran.out, ran.err) == (2, "", "the log is empty\n"), question
    full_log().write(path)
    ran = report(capsys, "--where", "a=b", "--cache", "other", path)
    assert (ran.status, ran.err) == (2, "no events to analyse of cache other\n")


def test_no_file(tmp_path: Path, capsys: Capture) -> None:
    """Exits with 2 and one line for each."""
    ran = report(capsys, tmp_path / "one", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        f"{tmp_path}/one: No such file or directory",
        f"{tmp_path}: Is a directory",
    ]


def test_the_rest_is_analysed(tmp_path: Path, capsys: Capture) -> None:
    """What is wrong with a part is told, makes the exit status 1, and costs only that part."""
    log = busy_log()
    text = log.text().encode()
    whole = tmp_path / "whole"
    whole.write_bytes(text)
    bad = tmp_path / "bad"
    other = json_line = b'{"event": "wasmcache.lost", "schema": 7}\n'
    bad.write_bytes(
        b"elsewhere\n" + text + other + b'{"event": "wasmcache.opened"}\n' + json_line[:20]
    )
    ran = report(capsys, "--json", tmp_path / "missing", bad)
    assert ran.status == 1
    assert ran.document["lines"] == {
        "read": len(log.lines) + 4,
        "events": len(log.lines),
        "foreign": 1,
        "damaged": 0,
        "half_written": 1,
        "other_schemas": {"7": 1, "None": 1},
    }
    assert ran.document["caches"] == report(capsys, "--json", whole).document["caches"]
    assert (
        ran.err.splitlines()
        == ran.document["notes"]
        == [
            f"{tmp_path}/missing: No such file or directory",
            f"{tmp_path}/bad: the last line is half written; it is left out",
            f"1 line of {len(log.lines) + 4} is from elsewhere: skipped",
            "1 event of schema 7: this tool reads schema 1; left out",
            "1 event of schema None: this tool reads schema 1; left out",
        ]
    )


def test_remarks_without_end(tmp_path: Path, capsys: Capture) -> None:
    """Are cut off: the twenty-first says nothing new."""
    ran = report(capsys, *(tmp_path / str(number) for number in range(50)))
    assert ran.status == 2
    lines = ran.err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and more of that kind"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing argument 'LOG...'"),
        (["--nonsense", "log"], "No such option"),
        (["--top", "0", "log"], "Invalid value for '--top'"),
        (["--thrash-seconds", "-1", "log"], "'-1' is no number of seconds"),
        (["--thrash-seconds", "nan", "log"], "'nan' is no number of seconds"),
        (["--thrash-seconds", "soon", "log"], "'soon' is no number of seconds"),
        (["--html", ".", "log"], "File '.' is a directory"),
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], told: str, capsys: Capture) -> None:
    """Exits with 2 and says what is wrong."""
    ran = report(capsys, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err
    assert "Usage: python -m trio_wasmcache report" in ran.err


def test_help(capsys: Capture) -> None:
    """Tells what a log is, and what the exit status means."""
    ran = report(capsys, "--help")
    assert ran.status == 0
    assert "The exit status is" in ran.out
    assert run_command(capsys, "--help").status == 0
    assert run_command(capsys).status == 2


def test_a_page_that_can_not_be_written(tmp_path: Path, capsys: Capture) -> None:
    """Exits with 2."""
    path = busy_log().write(tmp_path / "log")
    ran = report(capsys, "--html", tmp_path / "none" / "page.html", path)
    assert ran.status == 2
    assert "page.html': No such file or directory" in ran.err


def command(*arguments: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
        **kwargs,
    )


def test_whoever_reads_may_stop(tmp_path: Path) -> None:
    """Of which nothing is said; a full disk is."""
    path = busy_log().write(tmp_path / "log")
    reader, writer = os.pipe()
    os.close(reader)
    done = command("-m", "trio_wasmcache", "report", path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    with Path("/dev/full").open("wb") as full:
        done = command("-m", "trio_wasmcache", "report", path, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "the answer can't be written: No space left on device\n"


@pytest.mark.parametrize("name", ["report", "replay", "whatif", "tune"])
def test_ctrl_c(name: str, tmp_path: Path) -> None:
    """Ends it with a word, 130 and no traceback, while it waits for more of a log."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    arguments = ["-m", "trio_wasmcache", name, str(pipe)]
    arguments += ["--max-size", "1MiB"] if name == "whatif" else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=restore_ctrl_c,
        text=True,
    ) as process:
        with pipe.open("w") as writer:  # now it has begun to read
            writer.write(busy_log().text())
            writer.flush()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def restore_ctrl_c() -> None:
    """Undo what a parent in the background may have set."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_while_it_begins(tmp_path: Path) -> None:
    """Ends it just so: importing its libraries takes a second."""
    program = (
        "import sys\n"
        "class Interrupter:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'polars': raise KeyboardInterrupt\n"
        "from trio_wasmcache import __main__\n"
        "__main__.NEEDED = ()\n"
        "sys.meta_path.insert(0, Interrupter())\n"
        "sys.exit(__main__.main(['report', 'log']))"
    )
    done = command("-c", program, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_terminal_without_letters(tmp_path: Path) -> None:
    """Shows codes for what it can't show."""
    path = full_log("naïve").write(tmp_path / "log")
    with (tmp_path / "out").open("wb") as out:
        program = "import sys; sys.stdout.reconfigure(encoding='ascii')\n"
        program += "from trio_wasmcache.__main__ import main; sys.exit(main(sys.argv[1:]))"
        done = command("-c", program, "report", path, stdout=out)
    assert (done.returncode, done.stderr) == (0, "")
    assert rb"na\xefve(i64)" in (tmp_path / "out").read_bytes()


def test_without_the_extra(tmp_path: Path) -> None:
    """The command says what to install; the cache itself needs none of it."""
    program = (
        "import sys\n"
        "for name in ('polars', 'rich'): sys.modules[name] = None\n"
        "sys.modules['polars'] = None\n"
        "from trio_wasmcache.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = command("-c", program, "report", tmp_path / "log", stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr == "report needs polars, rich: pip install '.[report]'\n"
    assert command("-c", program, "schema", stdout=subprocess.DEVNULL).returncode == 0


def test_an_id_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes of a command line may be anything; there is no such cache."""
    path = busy_log().write(tmp_path / "log")
    ran = run_command(capsys, "report", "--cache", "\udcff", path)
    assert (ran.status, ran.err) == (2, "no events to analyse of cache ?\n")
