"""The report in a real browser: it says nothing to the console, loads nothing, fits a telephone, and has a dark side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import Browser
from report_outputs import NIGHT, TABLES, Night, labelled
from test_report import LABELS, PLANT, planted

from batchnlp.report.gather import comparison, page
from batchnlp.report.render import render

pytestmark = pytest.mark.skipif(browser.find() is None, reason=browser.NONE)
WORD = "a-word-without-a-place-to-break-it-that-goes-on-and-on-and-on-and-on-and-on" * 3


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as one:
        yield one


def night_after(root: Path) -> Any:
    """Something of everything: a night before, dead letters, a pause, names that are too long."""
    Night(root / "a", labelled(LABELS, [0.5, 0.3, 0.2])).work(note="a note").finish()
    names = [*LABELS, WORD]
    found = labelled(names, [0.3, 0.3, 0.2, 0.2], lengths=[1, 30, 400, 5000])
    run = Night(root / "b", found, print_="b2" * 32, began=NIGHT + 86_400, dead=5, revision=WORD)
    return page(run.work(message=WORD, note=WORD).finish().root)


def of_task(name: str) -> Any:
    kind, found, _ = TABLES[name]
    return lambda root: page(Night(root, found, kind).work().finish().root)


def damaged(root: Path) -> Any:
    run = Night(root, labelled(LABELS, [0.5, 0.3, 0.2])).work().finish()
    next(root.glob("part-*.parquet")).unlink()
    return page(run.root)


def compared(root: Path) -> Any:
    runs = [
        Night(root / shares_, labelled(LABELS, [float(shares_), 0.3, 0.2])).work().finish()
        for shares_ in ("0.5", "0.2")
    ]
    return comparison(*(run.root for run in runs))


PAGES = {
    "two nights": night_after,
    "ner": of_task("ner"),
    "generate": of_task("generate"),
    "embed": of_task("embed"),
    "unfinished": lambda root: page(Night(root, labelled(LABELS, [0.5, 0.3, 0.2])).work([1]).root),
    "damaged": damaged,
    "planted": lambda root: page(planted(root, PLANT).root, ["note"]),
    "compared": compared,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_a_browser(tmp_path: Path, chromium: Browser, name: str) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(render(PAGES[name](tmp_path / "out")))
    chromium.console.clear()
    chromium.requests.clear()
    grounds = set()
    for width in (390, 1100):
        for dark in (False, True):
            chromium.open(file, width, dark=dark)
            wide, there, beyond = chromium.evaluate(browser.OVERFLOW)
            assert there == width, "the device is emulated"
            assert (wide <= width, beyond) == (True, []), f"{wide} px at {width}"
            assert chromium.evaluate("document.scripts.length + document.images.length") == 0
            grounds.add(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2, "light and dark differ"
    assert chromium.evaluate("document.querySelector('.verdict').getBoundingClientRect().top") < 400, "it comes first"
    assert chromium.pdf().startswith(b"%PDF")
    assert chromium.console == []
    assert {url for url in chromium.requests if not url.startswith("data:,")} == {file.as_uri()}
