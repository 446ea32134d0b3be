"""The cookbook's chapters: a stranger who follows one gets what it says."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from cookbook.toolchains import PROBES, MissingError, prepare
from documents import CHAPTERS, COOKBOOK, TEXTS, blocks, program_of, rows, run, sections
from kits import nightly

from trio_wasmcache._core.wasm.component.reader import read_component
from trio_wasmcache._core.wasm.reader import read_module

NIGHTLY = nightly()
BUILT_AT_NIGHT = {"javascript", "python"}
# Their fuel differs: by what was built, and by when a collector of garbage runs.
OTHER_NUMBERS = BUILT_AT_NIGHT | {"go"}
"""Chapters without a module: it has over 10 MB, and building and compiling it takes minutes."""

ALIKE = ["Source", "Build", "Register", "Limits", "When it fails"]
LONGEST_PAGE = 4_500
ROWS = ["memory at the start", "imports", "size of the module", "`reset`"]

# Records what the page registers, and then tells how that behaves; also in a cache that it opens.
BEFORE = """
import contextlib, json
from pathlib import Path
class Recording:
    registered = []
    def __init__(self, cache): self.cache = cache
    def __getattr__(self, name): return getattr(self.cache, name)
    async def register(self, *args, **options):
        function = await self.cache.register(*args, **options)
        self.registered.append((function, args, options))
        return function
cache = Recording(cache)
@contextlib.asynccontextmanager
async def recorded(config, open_cache=trio_wasmcache.open_cache):
    async with open_cache(config) as opened:
        yield Recording(opened)
trio_wasmcache.open_cache = recorded
"""
OPENS = "async with open_cache("
AFTER = """
function, args, options = cache.registered[0]
options = {**options, "isolation": "reset", "replace": True}
verdict = (await cache.register(*args, **options)).isolation_verdict
print(json.dumps({"reset": verdict}))
"""
# Chapters whose function is `slug` agree with Python, in every isolation, and keep their size.
SLUGS = """
TEXTS = ["", " ", "a", "A b", "  Tab\\tand\\n LINES ", "x" * 5000, "Ab " * 2000, "-", "3.14 PI"]
TEXTS += ["A\\0b \\0 c"]
ROWS = [(text, most) for text in TEXTS for most in (1, 2, 1000)]
WANTED = ["-".join(text.lower().split()[:most]) for text, most in ROWS]
for isolation in ("reset", "fresh", "reuse"):
    slug = await cache.register(*args, **{**options, "isolation": isolation})
    assert [await slug.call(*row) for row in ROWS[:9]] == WANTED[:9]
    async with slug.acquire() as lease:
        assert list(await lease.map(list(zip(*ROWS)))) == WANTED
async with slug.acquire() as lease:
    sizes = []
    for _ in range(4):
        for _ in range(20):
            for row in ROWS:
                await lease.call(*row)
        sizes.append(lease.memory.size)
assert sizes[1] == sizes[3], f"it grows: {sizes}"
try:
    await slug.call("Hello", 0)
except trio_wasmcache.GuestError as error:
    pass
else:
    raise AssertionError("no error")
"""


def name_of(page: Path) -> str:
    return page.parent.name


def fences(page: Path, language: str = r"\w+") -> Iterator[tuple[str, str]]:
    """The blocks of code of a page, with their languages."""
    yield from re.findall(rf"^```({language})\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


def sources(page: Path) -> dict[str, str]:
    """{name of file: text}, of the blocks that begin with a comment with a name."""
    found = {}
    for language, text in fences(page):
        named = re.match(r"(?://|#|--|;;|/\*) *([\w.-]+\.\w+)\b", text)
        if named and language not in ("python", "sh", "text"):
            found[named[1]] = text
    return found


def modules(folder: Path) -> dict[str, bytes]:
    """The modules of a folder by their names; large ones are kept packed."""
    plain = {path.name: path.read_bytes() for path in folder.glob("*.wasm")}
    packed = {path.stem: lzma.decompress(path.read_bytes()) for path in folder.glob("*.wasm.xz")}
    return plain | packed


@pytest.fixture(params=CHAPTERS, ids=name_of)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def copy(page: Path, tmp_path: Path) -> Path:
    """The page's folder elsewhere, with the modules unpacked."""
    folder = tmp_path / name_of(page)
    shutil.copytree(page.parent, folder)
    for name, module in modules(folder).items():
        (folder / name).write_bytes(module)
    return folder


def follow(page: Path, folder: Path) -> tuple[str, dict[str, str]]:
    """Run the Python of a page in a folder; return what it printed, and what is told at the end."""
    lines = "".join(text for _, text in blocks(TEXTS[page]))
    more = AFTER + (SLUGS if "slug = await cache.register(" in lines else "")
    if OPENS in lines:  # all that follows is in its block
        more = textwrap.indent(more, "    ")
    program = program_of(BEFORE + lines + more)
    printed, _, told = run("-W", "error", "-c", program, cwd=folder).stdout.rpartition("{")
    return printed, json.loads("{" + told)


def test_there_is_a_probe_for_each() -> None:
    """Each chapter's build runs in the test below where its toolchain is."""
    assert sorted(PROBES) == [name_of(page) for page in CHAPTERS]


def test_the_table_of_toolchains() -> None:
    """It links to each chapter, with the figures that stand there."""
    table = rows("Which toolchain", "for")
    linked = {}
    for _, chapter, _, module, memory, _ in table:
        link = re.search(r"\((.+)\)", chapter)
        assert link
        linked[COOKBOOK.parent / link[1]] = (memory, module)
    assert sorted(linked) == CHAPTERS
    for page, (memory, module) in linked.items():
        facts = limits(page)
        assert facts[ROWS[0]].startswith(memory)
        assert facts[ROWS[2]].startswith(module)


def limits(page: Path) -> dict[str, str]:
    """The first two columns of the table of limits."""
    text = sections(page)["Limits"]
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", text, re.MULTILINE))


def test_they_are_alike(page: Path) -> None:
    """Each has the same sections, is short, and shows every file of its folder, or links to it."""
    assert list(sections(page)) == ALIKE
    assert len(TEXTS[page].encode()) <= LONGEST_PAGE
    assert {mark for mark, _ in blocks(TEXTS[page])} == {"snippet"}
    shown = sources(page)
    beside = {
        path.name: path.read_text()
        for path in page.parent.iterdir()
        if path != page and not path.name.endswith((".wasm", ".wasm.xz"))
    }
    linked = {name for name in beside if f"]({name})" in TEXTS[page]}
    assert shown == {name: text for name, text in beside.items() if name not in linked}
    assert shown


def test_their_lines_run(page: Path, copy: Path) -> None:
    """Its Python runs, with the module that lies beside it, and prints what it shows."""
    if name_of(page) in BUILT_AT_NIGHT:
        pytest.skip("it is built at night, and its lines run then")
    check_lines(page, copy)


def check_lines(page: Path, copy: Path) -> None:
    """It prints what it shows, and its limits are the module's."""
    printed, told = follow(page, copy)
    numbers = r"\d+" if name_of(page) in OTHER_NUMBERS else r"(?!)"
    lines = iter(re.sub(numbers, "N", printed).splitlines())
    for _, text in fences(page, "text"):
        for line in re.sub(numbers, "N", text).splitlines():
            assert line in lines, f"it does not print {line!r}, but:\n{printed}"
    check_limits(page, *modules(copy).values(), told)


def check_limits(page: Path, module: bytes, told: dict[str, str]) -> None:
    """The table of limits has the facts of the module."""
    facts = [limits(page).get(name, "") for name in ROWS]
    pages, imports = sizes(module)
    size = f"{len(module) / 1000:,.{0 if len(module) > 10_000 else 1}f} KB"
    slack = 0
    if name_of(page) in BUILT_AT_NIGHT:  # they differ a little each time
        size, slack = f"{len(module) / 1e6:.0f} MB", 5
    said = re.match(r"(\d+) pages?\b", facts[0])
    assert said
    assert abs(int(said[1]) - pages) <= slack, f"{ROWS[0]}: {pages} pages"
    assert re.match(f"{imports or 'none'}\\b", facts[1]), f"{imports} imports"
    assert facts[2].startswith(size), size
    works = "yes" if told["reset"].startswith("reset: ") else "no"
    assert facts[3].startswith(works), told["reset"]


def sizes(wasm: bytes) -> tuple[int, int]:
    """Pages of memory, and the number of imports; for a component, that of interfaces."""
    if wasm[4:8] == b"\1\0\0\0":
        info = read_module(wasm)
        return sum(memory.minimum for memory in info.memories), len(info.imports)
    component = read_component(wasm)
    pages = 0
    for module in component.modules:
        info = read_module(wasm[module.start : module.end])
        if not any(one.kind == "memory" for one in info.imports):
            pages += sum(memory.minimum for memory in info.memories)
    return pages, len({one.interface for one in component.imports})


def test_what_is_built_anew_does_the_same(page: Path, copy: Path) -> None:
    """Its build lines make the module from the sources, with which its Python runs."""
    at_night = name_of(page) in BUILT_AT_NIGHT
    if at_night and not NIGHTLY:
        pytest.skip("building and compiling it takes minutes")
    built = {"slug.wasm"} if at_night else set(modules(copy))
    for path in [*copy.glob("*.wasm"), *copy.glob("*.wasm.xz")]:
        path.unlink()
    try:
        env = prepare(name_of(page), copy)
    except MissingError as missing:
        pytest.skip(f"THE COOKBOOK'S {name_of(page)} IS NOT BUILT ANEW: {missing} here")
    for _, lines in fences(page, "sh"):
        done = subprocess.run(
            ["sh", "-eu", "-c", lines],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert set(modules(copy)) == built
    if at_night:
        check_lines(page, copy)
    else:
        follow(page, copy)
