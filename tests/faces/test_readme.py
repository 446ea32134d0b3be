"""The pages of documentation, compared with what is there."""

import inspect
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import attrs
import jsonschema
import pytest
from documents import (
    ALL,
    BLOCKS,
    COOKBOOK,
    ENGINES,
    FRONT,
    GUIDE,
    PAGES,
    ROOT,
    SECTIONS,
    TEXTS,
    anchors,
    code,
    program_of,
    rows,
    run,
)

import trio_wasmcache
from trio_wasmcache import CacheConfig, KiB, MiB, WasmCacheError
from trio_wasmcache.__main__ import INTERRUPTED
from trio_wasmcache._abi.plain import TYPES
from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._core.events import SCHEMA_VERSION, Opened, Reason, Stamped
from trio_wasmcache._log import BUFFER_EVENTS
from trio_wasmcache.report.cli.commands import report
from trio_wasmcache.report.findings.verdict import KINDS
from trio_wasmcache.report.output.document import REPORT_VERSION
from trio_wasmcache.report.output.terminal import TOP
from trio_wasmcache.report.reading.notes import FINE, FLAWED, NOTHING
from trio_wasmcache.report.reading.schema import make_schema
from trio_wasmcache.report.summary.entries import LIMITS
from trio_wasmcache.report.summary.summary import THRASH_SECONDS


def test_every_python_block_is_marked() -> None:
    """Every Python block says how it is run, so that the tests below run it."""
    assert {mark for mark, _ in BLOCKS} == {"runs", "snippet", "tests"}


def is_recipe(text: str) -> bool:
    """Whether a program of the README shows where the log can go."""
    return "import logging" in text or "from logging" in text


@pytest.mark.parametrize(
    "program", [text for mark, text in BLOCKS if mark == "runs" and not is_recipe(text)]
)
def test_programs_run(program: str, tmp_path: Path) -> None:
    """Whole programs of the pages run as they are."""
    run("-W", "error", "-c", program, cwd=tmp_path)


def test_recipes_for_the_log(tmp_path: Path) -> None:
    """One rotates files, one goes through the standard logging; what they write is valid."""
    validator = jsonschema.Draft202012Validator(make_schema())
    for recipe in (text for mark, text in BLOCKS if is_recipe(text)):
        told = run("-W", "error", "-c", recipe, cwd=tmp_path).stderr
        if "RotatingFileHandler" in recipe:
            assert told == ""
            told = (tmp_path / "wasmcache.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in told.splitlines()]
        for line in lines:
            assert {"level", "timestamp"} <= line.keys()
            if line["event"].startswith("wasmcache."):
                validator.validate(line)
        events = [line["event"] for line in lines]
        assert events[-1] == "wasmcache.closed"
        assert events.count("another line, which the report skips and counts") == (
            "RotatingFileHandler" not in recipe
        )


def test_exit_statuses_and_options_of_the_log_tool() -> None:
    """The tables of the log tool are what it does."""
    statuses = [int(status) for status, _ in rows("Reading the log", "exit status")]
    assert statuses == [FINE, FLAWED, NOTHING, INTERRUPTED]
    documented = {code(option)[0].split()[0] for option, _ in rows("Reading the log", "option")}
    options = {option for parameter in report.params for option in parameter.opts}
    assert documented == {option for option in options if option.startswith("--")}
    text = SECTIONS["Reading the log"]
    assert f"{THRASH_SECONDS:g} by default" in text
    assert f"{TOP} by default" in text
    assert f"`report` in it is {REPORT_VERSION}" in text
    limits = next(
        meaning
        for word, meaning in rows("Reading the log", "the report's word")
        if word == "thrash"
    )
    assert code(limits) == [*LIMITS]


@pytest.mark.parametrize("snippet", [text for mark, text in BLOCKS if mark == "snippet"])
def test_snippets_run(snippet: str) -> None:
    """The snippets of the pages run in a cache in which fib is registered."""
    run("-W", "error", "-c", program_of(snippet), cwd=ROOT)


def test_tests_run(tmp_path: Path) -> None:
    """The tests that the README shows pass under pytest with pytest-trio."""
    shown = [text for mark, text in BLOCKS if mark == "tests"]
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (tmp_path / "test_shown.py").write_text(shown[0])
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path)


def test_commands() -> None:
    """One line runs the demo and one the tests, the latter as `.ci/run` looks for it."""
    commands = re.findall(r"^    (python .*)$", TEXTS[FRONT], re.MULTILINE)
    install = "python -m venv .venv && .venv/bin/pip install"
    demo = f"{install} . && .venv/bin/python -m trio_wasmcache demo"
    tests = f"{install} -e '.[test,examples]' && .venv/bin/python -m pytest -n auto tests"
    assert commands == [demo, tests]
    script = ROOT / ".ci" / "run"
    if script.exists():  # it is not part of a source distribution
        pattern = re.search(r"s/\^(.+)\$/\\1/p", script.read_text(encoding="utf-8"))
        assert pattern, "`.ci/run` does not take the test command from the README"
        wanted = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
        assert re.findall(f"^{wanted}$", TEXTS[FRONT], re.MULTILINE) == [tests]


def test_findings_table() -> None:
    """Each kind of finding is explained."""
    documented = [kind for cells in rows("Reading the log", "finding") for kind in code(cells[0])]
    assert sorted(documented) == sorted(KINDS)


def test_config_table() -> None:
    """The table of limits has every field of CacheConfig, in order, with its default."""
    names = {"KiB": KiB, "MiB": MiB, "math": math, "os": os}
    documented = {
        code(field)[0]: eval(code(default)[0], names)
        for field, default, _ in rows("Limits", "field")
    }
    actual = CacheConfig()
    fields = [field.name for field in attrs.fields(CacheConfig)]
    assert list(documented) == fields
    assert documented == {name: getattr(actual, name) for name in fields}


def test_event_table() -> None:
    """The table of events has every event, in order, with all of its fields."""
    documented = {code(name)[0]: code(fields) for name, _, fields in rows("The log", "event")}
    assert list(documented) == [event.name for event in EVENTS]
    assert documented == {event.name: [*event.field_names] for event in EVENTS}


def test_log_section() -> None:
    """The fields that all events share, the warnings and the buffer are as the text says."""
    text = SECTIONS["The log"]
    own = {*Opened.field_names}
    opened = Opened(**dict.fromkeys(own, 0))
    shared = Stamped(opened, "c", 1, 0.0).fields().keys() - own
    paragraph = next(line for line in text.splitlines() if line.startswith("Each event has"))
    assert set(code(paragraph)) == shared
    assert f"`schema` (now {SCHEMA_VERSION})" in paragraph
    assert f"{BUFFER_EVENTS:,} events" in text
    optional = next(line for line in text.splitlines() if "are logged only with" in line)
    told = {event.name for event in EVENTS if (event.__doc__ or "").startswith("With `log_uses`")}
    assert set(code(optional)) == told | {"log_uses=True"}


def test_reason_table() -> None:
    """The table of reasons has every reason, in order."""
    documented = [code(reason)[0] for reason, _ in rows("Hit, miss, block, evict", "reason")]
    assert documented == [reason.value for reason in Reason]


def test_error_table() -> None:
    """The table of errors has every error of the library, each once."""
    documented = [code(error)[0] for error, _ in rows("Errors", "error")]
    public = {
        name
        for name in dir(trio_wasmcache)
        if inspect.isclass(value := getattr(trio_wasmcache, name))
        and issubclass(value, WasmCacheError)
    }
    assert len(documented) == len(set(documented))
    assert set(documented) == public


def test_type_table() -> None:
    """The table of types has every type that crosses."""
    documented = [name for cells in rows("Functions", "type") for name in code(cells[0])]
    assert sorted(documented) == sorted(TYPES)


def test_every_public_name_is_mentioned() -> None:
    """Whatever `trio_wasmcache` exports is in the documentation."""
    public = trio_wasmcache.__all__
    assert len(public) > 30
    assert {name for name in public if not re.search(rf"\b{name}\b", ALL)} == set()


def test_examples_table() -> None:
    """Every example is in the table of examples."""
    documented = {code(program)[0] for program, _ in rows("Examples", "program")}
    assert documented == {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}


def test_pages_are_short() -> None:
    """The front page is read in five minutes, and the guide has an end."""
    assert len(TEXTS[FRONT].encode()) <= 15_000
    assert len(TEXTS[GUIDE].encode()) <= 40_000


def test_links_lead_somewhere() -> None:
    """Each link within the documentation names a file that exists, and a heading in it."""
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if file in PAGES or ROOT / ".github" not in file.parents:
                assert file.exists(), f"{page}: {target}"
            if anchor and file in TEXTS:
                assert anchor in anchors(TEXTS[file]), f"{page}: {target}"


def test_every_page_has_its_contents() -> None:
    """A list at its beginning links to each section."""
    for page in (GUIDE, COOKBOOK, ENGINES):
        contents = re.findall(r"^- \[(.+)\]\(#", TEXTS[page], re.MULTILINE)
        assert contents == re.findall(r"^## (.+)$", TEXTS[page], re.MULTILINE)


def test_the_function_from_source_to_call(tmp_path: Path) -> None:
    """The C of the front page is compiled by its command, and called by its lines."""
    if not (shutil.which("clang") and shutil.which("wasm-ld")):
        pytest.skip("NO CLANG OR NO LLD HERE: the function of the front page was not built")
    section = SECTIONS["A function from source to call"]
    source = re.search(r"```c\n(.*?)```", section, re.DOTALL)
    build = re.search(r"^    clang (.*)$", section, re.MULTILINE)
    calls = re.search(r"```\n(price = .*?)```", section, re.DOTALL)
    assert source
    assert build
    assert calls
    (tmp_path / "price.c").write_text(source[1])
    subprocess.run(["clang", *build[1].split()], cwd=tmp_path, check=True)
    program = program_of("from pathlib import Path\n" + calls[1])
    run("-W", "error", "-c", program, cwd=tmp_path)
