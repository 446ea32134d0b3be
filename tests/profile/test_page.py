"""The page of a profile in a browser: searchable, in light and in dark, whatever the names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browsing import browser as browser, contrast, look, luminance
from core.profiles.test_tally import HOSTILE

from trio_wasmcache import Frame, Profile
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.profiles.tally import Origin, ProfileTally
from trio_wasmcache._profile import page

EVIL = f'"><script>document.title="owned"</script><img src=x onerror=alert(1)></script>{HOSTILE}'


def profile_of(evil: str = "", label: str = "shop") -> Profile:
    """Two groups; `spin` burns most, in a line of `spin.c`."""
    tally = ProfileTally()
    slow = Origin(f"acme{evil}", FunctionKey(f"slow{evil}", ("i64",)), 1)
    quick = Origin("other", FunctionKey("quick", ()), 2)
    spin, run = Frame(f"spin{evil}", 1), Frame(f"run{evil}", 2)
    tally.add(slow, [spin, run], 8_000_000, 800)
    tally.add(slow, [Frame(f"spin{evil}", 3), run], 500_000, 50)
    tally.add(slow, [run], 200_000, 20)
    for number in range(20):
        tally.add(quick, [Frame(f"part {number}"), Frame("main")], 100_000 - number, 10)
    tally.add(quick, [Frame("tiny"), Frame("main")], 1, 1)
    tally.locate(1, {1: (f"src/spin.c{evil}", 12, 3), 3: (f"src/spin.c{evil}", 13, None)})
    skipped = {f"big{evil}(i64)": f"it does not fit{evil}"} if evil else {}
    return Profile(
        seconds=10.0, started_at=1.0, label=label + evil[:50], skipped=skipped, tally=tally
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a profile."""
    path = tmp_path_factory.mktemp("profile") / "page.html"
    path.write_text(profile_of().html(), encoding="utf-8")
    return path


TEXTS = "return [...document.querySelectorAll('.frame')].map(frame => frame.textContent)"
COLOURS = """
return [...document.querySelectorAll('.frame, td, p, .tools label, h1')].filter(
  element => element.textContent && getComputedStyle(element).opacity === '1').map(element => {
    let ground = element;
    const colour = () => getComputedStyle(ground).backgroundColor;
    while (colour() === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
    return [getComputedStyle(element).color, colour()];
});
"""


def rows(browser: Any) -> list[list[str]]:
    """The table of functions."""
    return [
        [cell.text for cell in row.find_elements("tag name", "td")]
        for row in browser.find_elements("css selector", "#functions tbody tr")
    ]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_in_a_browser(mode: str, browser: Any, plain: Path) -> None:
    """The graph and the table name what burns most; nothing is complained of or fetched."""
    look(browser, plain, mode)
    assert browser.get_log("browser") == []
    assert browser.title == "What the guests of shop do"
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) is (mode == "light")
    assert min(contrast(*pair) for pair in browser.execute_script(COLOURS)) > 4.5
    texts = browser.execute_script(TEXTS)
    assert {"all", "acme", "other", "slow(i64)", "run", "spin"} <= {*texts}
    assert "tiny" not in texts, "it is narrower than a pixel"
    first = rows(browser)[0]
    assert first == ["spin", "79.4 %", "79.4 %", "850", "src/spin.c:12"]
    assert ["run", "1.87 %", "81.3 %", "20", ""] in rows(browser)
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.execute_script(wide)


def test_search_and_zoom(browser: Any, plain: Path) -> None:
    """By name, by line; a function alone, a group alone, and all again."""
    look(browser, plain, "light")
    search = browser.find_element("id", "search")
    found = browser.find_element("id", "found")
    search.send_keys("SPIN.c:13")
    assert found.text == "79.4 % of the fuel is burnt in what is found"
    assert browser.execute_script("return document.querySelectorAll('.match').length") == 1
    search.clear()
    search.send_keys("part 1")
    assert browser.execute_script("return document.querySelectorAll('.match').length") == 11
    browser.find_element("id", "reset").click()
    assert found.text == ""
    spin = next(
        one for one in browser.find_elements("css selector", ".frame") if one.text == "spin"
    )
    spin.click()
    detail = browser.find_element("id", "detail").text
    assert "8,500,000 units of fuel" in detail
    assert "src/spin.c:12: 94.1 % of it" in detail
    widths = "return [...document.querySelectorAll('.frame')].map(frame => frame.offsetWidth)"
    assert len({*browser.execute_script(widths)}) == 1
    options = browser.find_elements("css selector", "#group option")
    assert [option.text for option in options] == ["all", "acme (81.3 %)", "other (18.7 %)"]
    options[2].click()
    parts = {f"part {number}" for number in range(20)}
    assert {row[0] for row in rows(browser)} == parts | {"quick()", "main", "tiny"}
    browser.find_element("id", "reset").click()
    assert rows(browser)[0][0] == "spin"


def test_hostile_names(browser: Any, tmp_path: Path) -> None:
    """They are text: no script of theirs runs, and no element is theirs."""
    path = tmp_path / "page.html"
    profile = profile_of(EVIL)
    path.write_text(profile.html(), encoding="utf-8")
    look(browser, path, "light")
    assert browser.get_log("browser") == []
    assert "owned" not in browser.title.replace(EVIL[:50], "")
    assert browser.find_elements("tag name", "img") == []
    assert len(browser.find_elements("tag name", "script")) == 2
    assert any("<script>" in text for text in browser.execute_script(TEXTS))
    assert "it does not fit" in browser.find_element("css selector", ".notes").text
    assert "<script>document" in rows(browser)[0][0]
    for text in (profile.html(), profile.collapsed()):
        assert "\x1b" not in text
        assert "\u2028" not in text


def test_a_script_of_others_is_refused(browser: Any, plain: Path, tmp_path: Path) -> None:
    """By the page's policy, even where one had got into it."""
    text = plain.read_text(encoding="utf-8")
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", "<script>document.title='owned'</script></body>"))
    look(browser, path, "light")
    assert browser.title == "What the guests of shop do"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_without_samples(browser: Any, tmp_path: Path) -> None:
    """The page says so."""
    path = tmp_path / "page.html"
    empty = Profile(seconds=1.0, started_at=1.0, tally=ProfileTally())
    path.write_text(empty.html(), encoding="utf-8")
    assert empty.collapsed() == ""
    look(browser, path, "dark")
    assert browser.get_log("browser") == []
    assert "there are no samples" in browser.find_element("css selector", ".notes").text


def test_the_colours_are_those_of_the_report() -> None:
    """So that the pages of one library look alike."""
    report = Path(page.__file__).parents[1] / "report" / "output" / "page.html.j2"
    blocks = [
        re.search(r":root \{.*?\n\}\n@media.*?\n\}\n", path.read_text(), re.DOTALL)
        for path in (report, page.FOLDER / "page.html")
    ]
    assert blocks[0] and blocks[1]
    assert blocks[0][0] == blocks[1][0]
