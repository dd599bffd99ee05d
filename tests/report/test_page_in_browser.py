"""The page in a real browser: drawn, quiet, offline, readable on a phone, and following the colour scheme."""

from __future__ import annotations

import json
import shutil

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from alula.report import write_report

INSTALL = "this test needs Chromium and its driver; run: apt-get install -y chromium chromium-driver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(INSTALL)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of a result at a width and in a colour scheme."""

    def opened(frontier, width=1280, scheme="light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # forget what earlier pages logged
        browser.get(write_report(frontier, tmp_path).as_uri())
        return browser

    return opened


def test_no_errors_and_no_requests(show, frontier):
    browser = show(frontier)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url[:40] for url in sent if not url.startswith("data:")] == [browser.current_url[:40]]


def test_plots_are_drawn(show, frontier):
    browser = show(frontier)
    counts = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(plot => "
        "[plot.querySelectorAll('svg').length, plot.querySelectorAll('.scatterlayer .point').length])"
    )
    assert len(counts) == 2
    for drawings, points in counts:
        assert drawings > 0
        assert points == 7  # the original and six candidates
    names = browser.execute_script("return [...document.querySelectorAll('.legendtext')].map(one => one.textContent)")
    assert names[:4] == ["dominated", "frontier", "original", "chosen"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["frontier", "failed", "hostile"])
def test_the_page_never_scrolls_sideways(show, kind, width, request):
    browser = show(request.getfixturevalue(kind), width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('main > section, header, .box, figure, .plot, .tiles li, p, h1, h2')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_wide_tables_scroll_inside_their_box(show, frontier):
    browser = show(frontier, width=390)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.box')].map(box => [box.scrollWidth > box.clientWidth, "
        "getComputedStyle(box).overflowX, box.tabIndex])"
    )
    assert len(boxes) == 4
    assert all(box[1:] == ["auto", 0] for box in boxes)
    assert [box[0] for box in boxes] == [True, True, True, False], "the table of times fits"


TABLE = (
    "const table = [...document.querySelectorAll('table')].find("
    "one => one.caption.textContent.includes('worst harm first'));"
)


def _column(browser, index):
    shown = "row => { const cell = row.cells[arguments[0]]; return cell.dataset.order ?? cell.textContent }"
    return browser.execute_script(f"{TABLE} return [...table.tBodies[0].rows].map({shown})", index)


def _press(browser, index):
    browser.execute_script(f"{TABLE} table.tHead.rows[0].cells[arguments[0]].querySelector('button').click()", index)


def test_sorting(show, frontier):
    browser = show(frontier)
    before = [float(value) for value in _column(browser, 3)]
    _press(browser, 3)
    assert [float(value) for value in _column(browser, 3)] == sorted(before, reverse=True)
    _press(browser, 3)
    assert [float(value) for value in _column(browser, 3)] == sorted(before)
    _press(browser, 0)
    names = _column(browser, 0)
    assert names == sorted(names)
    assert sorted(names) == sorted(row.name for row in frontier.candidates[0].layers)
    states = browser.execute_script(
        "return [...document.querySelectorAll('th[aria-sort]')].map(one => [one.textContent, one.ariaSort])"
    )
    assert states == [["Layer", "ascending"]]


@pytest.mark.parametrize("presses", [1, 2])
def test_a_layer_without_harm_sorts_last_either_way(show, frontier, presses):
    browser = show(frontier)
    for _ in range(presses):
        _press(browser, 5)
    assert _column(browser, 5)[-1] == "-"


def test_colours_follow_the_scheme_while_the_page_is_open(show, frontier):
    browser = show(frontier, scheme="light")
    light = _colours(browser)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(browser, 5).until(lambda _: _colours(browser)["plot"] != light["plot"])  # the event comes later
    dark = _colours(browser)
    assert sum(light["paper"]) > 3 * 240
    assert sum(dark["paper"]) < 3 * 40
    for scheme in (light, dark):
        assert _contrast(scheme["paper"], scheme["ink"]) >= 7
        assert _contrast(scheme["paper"], scheme["quiet"]) >= 4.5
        assert _contrast(scheme["paper"], scheme["plot"]) >= 7


def _colours(browser) -> dict[str, tuple[float, float, float]]:
    script = """
        const colour = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
        return {paper: colour("body", "backgroundColor"), ink: colour("h1", "color"), quiet: colour(".quiet", "color"),
                plot: colour(".plot .xtitle", "fill")};
    """
    found = browser.execute_script(script)
    return {name: tuple(float(part) for part in text[4:-1].split(",")) for name, text in found.items()}


def _contrast(first, second) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_hostile_names_run_nothing(show, hostile):
    browser = show(hostile)
    assert browser.execute_script("return document.title").startswith("<script>")  # text, not what it asked for
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.get_log("browser") == []
