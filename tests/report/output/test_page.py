"""The page in a browser: no errors, every chart there, in light and in dark, whatever the names."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsing import browser as browser, contrast, look, luminance
from matplotlib.figure import Figure
from report.cli.test_report import HOSTILE, full_log
from report.logs import OPENED, Log, busy_log, run_command, text_of
from report.workloads import run_on_jumping_clock, steady_plan

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache._core.events import Resized
from trio_wasmcache.report.cli.commands import run
from trio_wasmcache.report.output import page
from trio_wasmcache.report.output.charts import legend
from trio_wasmcache.report.summary.summary import LIMITS

CHARTS = ["size", "code", "evictions", "leases", "functions", "groups", "paid", "waits"]
EVIL = f'"><script>document.title="owned"</script><img src=x onerror=alert(1)>{HOSTILE}'


def page_of(folder: Path, text: str, name: str = "log") -> Path:
    """The page of a log in which nothing is missing."""
    path, html = folder / name, folder / "report.html"
    path.write_text(text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(["report", "--html", str(html), str(path)]) == 0
    return html


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a log with everything in it."""
    return page_of(tmp_path_factory.mktemp("full"), full_log().text())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a log in which every text is an attempt to get out of it."""
    log = full_log(EVIL)
    for number in range(5):
        log.evicted(300 + number, function=EVIL)
    log.evicted(310, function=r"$\frac{$")  # what matplotlib would take for a formula, a wrong one
    for number, line in enumerate(log.lines):
        line["timestamp"] = line["cache"] = EVIL
        for name in ("error", "waits_for"):
            if name in line:
                line[name] = EVIL
        if "group" in line:
            line["group"] = f"{number % 3}{EVIL}"
    log.lines[-1]["reason"] = EVIL
    name = f"log {EVIL.replace('/', '')}"
    return page_of(tmp_path_factory.mktemp("hostile"), text_of(log.lines), name)


# For each chart: what it is drawn on, the colours of its texts, and those of its bars and lines.
COLOURS = """
const mark = element => [element.style.fill, element.style.stroke].find(
  colour => colour && /--(c[0-9]|hit|miss)/.test(colour));
const resolved = (figure, colour) => {
  figure.style.color = colour;
  return getComputedStyle(figure).color;
};
return [...document.querySelectorAll('figure')].map(figure => ({
  ground: getComputedStyle(figure).backgroundColor,
  texts: [...figure.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill),
  marks: [...figure.querySelectorAll('svg *')].map(mark).filter(colour => colour).map(
    colour => resolved(figure, colour)),
}));
"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_in_a_browser(mode: str, browser: Any, full: Path) -> None:
    """Every chart is there and can be read in both; nothing is complained of or fetched."""
    look(browser, full, mode)
    assert browser.get_log("browser") == []
    figures = browser.find_elements("css selector", "figure.chart")
    assert [figure.get_attribute("data-chart") for figure in figures] == CHARTS
    assert all(figure.find_element("tag name", "svg").size["height"] > 100 for figure in figures)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) is (mode == "light")
    for figure in browser.execute_script(COLOURS):
        assert (luminance(figure["ground"]) > 0.5) is (mode == "light")
        assert figure["texts"]
        assert min(contrast(text, figure["ground"]) for text in figure["texts"]) > 4.5
        assert figure["marks"]
        assert min(contrast(mark, figure["ground"]) for mark in figure["marks"]) > 1.5
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    width = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.execute_script(width)


# What can be seen of a page: for each text of a chart, its size in pixels and its place, and the
# place of the chart; and for each table, whether it scrolls, and whether it says so.
SEEN = """
const box = element => {
  const {left, top, right, bottom} = element.getBoundingClientRect();
  return [left, top, right, bottom];
};
const seen = element => element.getClientRects().length > 0;
return {
  charts: [...document.querySelectorAll('figure svg')].filter(seen).map(svg => ({
    name: svg.closest('figure').dataset.chart,
    box: box(svg),
    texts: [...svg.querySelectorAll('text')].map(text => {
      const {a, b} = text.getScreenCTM();
      const type = parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
      return {type, box: box(text), text: text.textContent};
    }),
  })),
  type: Math.min(...[...document.querySelectorAll('body *')].filter(
    element => !element.closest('svg') && seen(element)).map(
    element => parseFloat(getComputedStyle(element).fontSize))),
  tables: [...document.querySelectorAll('.table')].map(table =>
    [table.scrollWidth > table.clientWidth, table.querySelector('.hint').offsetHeight > 0]),
  width: document.documentElement.scrollWidth,
  inside: document.documentElement.clientWidth,
  body: document.body.clientWidth,
};
"""
# The hints of tables are an animation, which a frame begins.
DRAWN = "const drawn = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(drawn));"
WIDTHS = (390, 1200)


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of ``tune``, and what it says on a terminal."""
    folder = tmp_path_factory.mktemp("tuning")
    log = run_on_jumping_clock(steady_plan(1, 3, 80), CacheConfig(max_size=3 * MiB)).log
    path, html, out = log.write(folder / "log"), folder / "tune.html", io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        command = ["tune", "--target-hit-rate", "0.6", "--html", str(html), str(path)]
        assert run(command) == 0
    return html, out.getvalue()


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) have more in common than an edge."""
    return all(
        min(one[low + 2], other[low + 2]) - max(one[low], other[low]) > 0.5 for low in (0, 1)
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "tune"])
def test_all_can_be_read(
    name: str, width: int, mode: str, browser: Any, full: Path, tuning: tuple[Path, str]
) -> None:
    """On a phone and on a desk: type of 10 pixels or more, no text over another or cut off, and
    tables that are wider than the page say so, and only those."""
    resize(browser, width)
    try:
        look(browser, full if name == "report" else tuning[0], mode)
        browser.execute_async_script(DRAWN)
        seen = browser.execute_script(SEEN)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert [chart["name"] for chart in seen["charts"]] == (
        CHARTS if name == "report" else ["curve"]
    )
    assert seen["width"] == seen["inside"] <= width
    assert seen["type"] >= 10
    for chart in seen["charts"]:
        left, top, right, bottom = chart["box"]
        texts = chart["texts"]
        assert texts
        for text in texts:
            assert 10 <= text["type"] <= 18, (chart["name"], text)
            box = text["box"]
            assert left - 1 <= box[0] <= box[2] <= right + 1, (chart["name"], text)
            assert top - 1 <= box[1] <= box[3] <= bottom + 1, (chart["name"], text)
        for one, other in itertools.combinations(texts, 2):
            assert not overlap(one["box"], other["box"]), (chart["name"], one, other)
    assert all(scrolls == told for scrolls, told in seen["tables"])
    if width == 390 and name == "report":
        assert any(scrolls for scrolls, _ in seen["tables"])
    if name == "tune":
        left, _, right, _ = seen["charts"][0]["box"]
        assert right - left > 0.8 * seen["body"]


def test_both_pages_of_a_tuning_mark_the_same(tuning: tuple[Path, str]) -> None:
    """The terminal, the table and the legends of both pictures name the same sizes."""
    html, out = tuning
    marked = re.findall(r"^(\S+ \w+)  ([a-z][a-z, ]*?) +\d", out, re.MULTILINE)
    assert {mark for _, marks in marked for mark in marks.split(", ")} == {"now", "knee", "advised"}
    page = html.read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="marked">(.*?)</tr>', page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [(row[0], row[-1]) for row in cells] == 2 * marked, "of hits, and of loading"
    for size, marks in marked:
        assert page.count(f"{marks}: {size}, ") == 2


def test_legends_have_what_is_drawn() -> None:
    """And nothing else: here, no lease missed."""
    log = Log()
    log.opened()
    for number in range(5):
        log.requested(number, number)
        log.acquired(number, True, request=number)
    assert 'aria-label="Leases' in (text := page_text(log))
    assert ">hits</text>" in text
    assert ">misses</text>" not in text


def page_text(log: Log) -> str:
    """The page of a log."""
    with tempfile.TemporaryDirectory() as folder:
        return page_of(Path(folder), log.text()).read_text(encoding="utf-8")


def test_names_from_the_log_in_a_browser(browser: Any, hostile: Path) -> None:
    """Are text, in tables, titles and charts: no script runs, and no element comes of them."""
    look(browser, hostile, "light")
    assert browser.title == "What the instance cache did"
    assert browser.get_log("browser") == []
    for tag in ("script", "img", "iframe"):
        assert browser.find_elements("tag name", tag) == []
    figures = browser.find_elements("css selector", "figure.chart")
    assert [figure.get_attribute("data-chart") for figure in figures] == CHARTS
    text = browser.find_element("tag name", "body").text
    assert '"><script>document.title="owned"</script>' in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}


class Tags(HTMLParser):
    """What is in a page: {tag: how many}, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attributes


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    """No scripts, and nothing that a browser would fetch; no name is given twice."""
    text = page_of(tmp_path, busy_log().text() + busy_log("cafe0002").text()).read_text()
    tags = Tags(text)
    assert "script" not in tags.count
    assert tags.count["svg"] == tags.count["figure"] == 2 * (len(CHARTS) - 1)  # one group only
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    links = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href")]
    assert all(str(link).startswith(("#", "data:")) for link in links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {str(link)[1:] for link in links if str(link).startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)
    assert not re.search(r"#0[0-9a-f]{5}\b", text)  # no stand-in colour is left


def test_names_are_escaped(hostile: Path) -> None:
    """Also where there is no browser to tell."""
    text = hostile.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.count.keys() & {"script", "img", "iframe"}
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert "&lt;script&gt;document.title" in text
    assert "\x1b" not in text
    assert text.count(r"$\frac{$") == 2  # in a table, and in a chart


def test_the_same_log_gives_the_same_page(tmp_path: Path) -> None:
    """Byte for byte: pages can be compared."""
    log = busy_log().text()
    assert page_of(tmp_path, log).read_bytes() == page_of(tmp_path, log).read_bytes()


def test_many_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn of those with the most events, tables shown of some more."""
    monkeypatch.setattr(page, "MAX_CHARTED", 1)
    monkeypatch.setattr(page, "MAX_SHOWN", 2)
    logs = [busy_log(f"cafe000{number}", rounds=3 + number) for number in range(3)]
    text = page_of(tmp_path, "".join(log.text() for log in logs)).read_text()
    assert re.findall(r"<h2>Cache (\w+)", text) == ["cafe0001", "cafe0002"]
    assert "the 2 caches with the most events are shown here" in text
    assert set(re.findall(r'id="(c\d+)-', text)) == {"c2"}


def test_many_functions_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Are cut off, and said to be."""
    monkeypatch.setattr(page, "MAX_CHARTED", 0)
    log = Log()
    for number in range(60):
        log.evicted(number, function=f"f{number}")
    paths = [log.write(tmp_path / f"log{number}") for number in range(6)]
    html = tmp_path / "report.html"
    assert run_command(capsys, "report", "--html", html, *paths).status == 0
    text = html.read_text()
    assert "The first 50 of 60, by time spent loading." in text
    assert "log3 and 2 more files" in text


@pytest.mark.parametrize("closed", [False, True])
def test_a_page_without_uses(closed: bool, tmp_path: Path) -> None:
    """Has what the log has."""
    log = Log()
    log.opened()
    log.add(0.5, Resized(**{field: getattr(OPENED, field) for field in LIMITS}))
    log.evicted(1, total_size_before_bytes=99 * 2**20)
    log.loaded(2, seconds=0.0)
    if closed:
        log.closed(3)
        log.lines[-1].update(hits=3, misses=1)
    text = page_of(tmp_path, log.text()).read_text()
    assert ("75.0 %" in text) is closed
    assert ("written without log_uses" in text) is not closed
    assert re.findall(r'data-chart="(\w+)"', text) == [
        *("size", "code", "evictions", "functions", "paid"),
    ]
    assert "limit 100.0 MiB" in text
    assert "far below the limit of 40.0 MiB" in text
    assert "As they were at the end, after 1 resize." in text


def test_a_legend_has_a_figure() -> None:
    """A chart that was taken out of its figure is a bug: its legend would be missing."""
    axes = Figure().subplots()
    axes.remove()
    with pytest.raises(AssertionError, match="no place for its legend"):
        legend(axes)
