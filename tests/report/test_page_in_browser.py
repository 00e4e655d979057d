"""The page in headless Chromium: quiet, readable, and worked by mouse and keyboard."""

import json
from itertools import pairwise

import numpy as np
import pytest
from browser import CONTRAST, chromium, look
from made_up import HOSTILE, people

from metricid.evaluation import PROTOCOLS
from metricid.report import Choice, Report, lay_out, look_at_people, render
from metricid.report.run_files import TrainingLog, Validation, Window

# Scripts that look at the page; each returns what is wrong, or what is shown.
TOO_WIDE = """
const limit = document.documentElement.clientWidth + 1;
return [...document.querySelectorAll("main *")]
  .filter((e) => !e.closest(".scroll, pre, svg, .sr") && e.getBoundingClientRect().right > limit)
  .map((e) => e.outerHTML.slice(0, 120));
"""
SPILLED = """
return [...document.querySelectorAll(".item, .tiles div")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.outerHTML.slice(-200));
"""
PICTURES = "return [...document.images].map((i) => [i.alt, i.naturalWidth, i.src.slice(0, 11)])"
CHARTS = "return [...document.querySelectorAll('svg[role=img]')].map((s) => s.getAttribute('aria-label'))"
UNNAMED = """
return [...document.querySelectorAll("input, select, button, [role=region]")]
  .filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).length;
"""
HEADINGS = "return [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1])"
INJECT = """
const script = document.createElement("script");
script.textContent = "window.bad = 1";
document.body.append(script);
document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x"}));
"""
COLUMN = """
return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]
  .filter((r) => !r.hidden).map((r) => r.cells[arguments[1]].textContent);
"""
OUTLINE = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth"
COLLATED = """
return arguments[0].toSorted((a, b) => a.localeCompare(b, undefined, {numeric: true}));
"""
STATES = "return [...document.querySelectorAll('#table-of-identities th[aria-sort]')].map((h) => h.ariaSort)"
QUERIES = """
return [...document.querySelectorAll("#list-of-queries [data-item]")]
  .filter((q) => q.getClientRects().length).map((q) => [q.dataset.group, q.dataset.key, +q.dataset.ap]);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything, about people with cameras, one of whom has a hostile name."""
    rng = np.random.default_rng(0)
    vectors, names, cameras = people(rng, identities=10, images=6, noise=2.0)
    names[names == "person 2"] = HOSTILE
    split = np.where(np.arange(len(names)) % 4 == 0, "query", "gallery").astype(object)
    columns = {"identity": names, "camera": cameras, "split": split}
    paths = [f"{'long folder/' * 9}{i}{HOSTILE}.jpg" for i in range(len(names))]
    results = [PROTOCOLS[name](vectors, columns) for name in ("reid", "verification")]
    seen = look_at_people(
        vectors,
        columns,
        paths,
        lambda path: (
            None if path.startswith("long") and "/7" in path else rng.integers(0, 256, (90, 60, 3), np.uint8)
        ),
        protocols=["reid"],
        choice=Choice(queries=4, top=6, seed=0),
    )
    log = TrainingLog(
        [
            Window(s, 16 * s, 1e-3 / s, 9 / s, {"softmax": 5 / s, HOSTILE: 4 / s}, 2.0, 0.1)
            for s in range(1, 40)
        ],
        [Validation(s, {"reid": {"rank-1": 0.5 + s / 100, "mAP": s / 100}}) for s in (10, 20, 39)],
        nonfinite=1,
        damaged=2,
    )
    report = Report(
        title=HOSTILE,
        kind="Training run",
        results=results,
        log=log,
        recipe=f"name: {HOSTILE}\n" + "x" * 500,
        environment=[("command", f"metricid train {HOSTILE}")],
        people=seen,
        laid_out=lay_out(vectors, seen, "pca", 0),
        notes=[f"A note about {HOSTILE}."],
    )
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(report), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def requests(browser, page) -> list[str]:
    """Addresses that the page asked for since the last call, data URIs left out."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [m["request"]["url"] for m in sent if m["documentURL"] == page.as_uri()]
    return [url for url in urls if not url.startswith("data:")]


def complaints(browser) -> list[dict]:
    """What the browser logged since the last call, but for what concerns pages of its own."""
    return [entry for entry in browser.get_log("browser") if not entry["message"].startswith("chrome://")]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_readable_and_fits(browser, page, width, scheme):
    requests(browser, page)
    look(browser, page, width, scheme)
    assert requests(browser, page) == [page.as_uri()]
    assert complaints(browser) == []
    script = browser.execute_script
    assert script("return document.documentElement.clientWidth") >= width - 20
    assert script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert script(TOO_WIDE) == []
    assert script(SPILLED) == []
    assert script("return matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    contrast = script(CONTRAST)
    assert len(contrast) > 300
    assert [entry for entry in contrast if entry[0] < 4.5] == []


def test_pictures_have_alternatives_and_charts_names(browser, page):
    look(browser, page, 1280, "light")
    pictures = browser.execute_script(PICTURES)
    assert len(pictures) > 60
    assert all(alt.strip() and width and source == "data:image/" for alt, width, source in pictures)
    assert any(alt.startswith("rank 1, ") for alt, _, _ in pictures)
    assert any(alt.startswith("no rank, same camera") for alt, _, _ in pictures)
    assert browser.execute_script("return document.querySelectorAll('.nopicture').length") > 0
    charts = browser.execute_script(CHARTS)
    assert len(charts) == 8  # CMC, ROC, scores, map, loss, rate, time, validation
    assert all(len(label) > 20 for label in charts)
    assert browser.execute_script(UNNAMED) == 0
    headings = browser.execute_script(HEADINGS)
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))


def test_hostile_names_stay_text(browser, page):
    look(browser, page, 1280, "light")
    assert browser.execute_script("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return [...document.images].every(i => !i.hasAttribute('onerror'))")
    browser.execute_script(INJECT)
    assert browser.execute_script("return window.bad") is None  # the policy of the page refuses it
    refused = complaints(browser)
    assert len(refused) == 2
    assert all("Content Security Policy" in entry["message"] for entry in refused)


def column(browser, table, number):
    return browser.execute_script(COLUMN, table, number)


def test_tables_sort_by_click_and_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    look(browser, page, 1280, "light")
    by_ap = [float(text.rstrip("%")) for text in column(browser, "table-of-identities", 3)]
    assert by_ap == sorted(by_ap)
    assert len(set(by_ap)) > 3
    buttons = browser.find_elements("css selector", "#table-of-identities th button")
    buttons[3].click()
    assert [float(t.rstrip("%")) for t in column(browser, "table-of-identities", 3)] == sorted(
        by_ap, reverse=True
    )
    buttons[3].send_keys(Keys.ENTER)
    assert [float(t.rstrip("%")) for t in column(browser, "table-of-identities", 3)] == by_ap
    browser.execute_script("arguments[0].focus()", buttons[3])
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    assert browser.switch_to.active_element == buttons[0]
    outline = browser.execute_script(OUTLINE)
    assert outline == "solid3px"
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    names = column(browser, "table-of-identities", 0)
    assert names == browser.execute_script(COLLATED, names)
    states = browser.execute_script(STATES)
    assert states == ["ascending", *["none"] * 5]


def test_filters_and_orders_work(browser, page):
    from selenium.webdriver.support.ui import Select

    look(browser, page, 390, "dark")
    box = browser.find_element("css selector", "input[data-filter=list-of-queries]")
    everything = browser.execute_script(QUERIES)
    assert len(everything) == 12
    name = everything[0][1]
    box.send_keys(name.upper())
    left = browser.execute_script(QUERIES)
    assert left == [entry for entry in everything if name in entry[1]] != everything
    count = browser.find_element("css selector", "output[data-count=list-of-queries]")
    assert count.text == f"{len(left)} of 12 shown"
    box.clear()
    box.send_keys(" ")
    assert len(browser.execute_script(QUERIES)) == 12
    Select(browser.find_element("css selector", "select[data-group]")).select_by_visible_text("worst")
    assert {group for group, _, _ in browser.execute_script(QUERIES)} == {"worst"}
    Select(browser.find_element("css selector", "select[data-group]")).select_by_visible_text("all")
    Select(browser.find_element("css selector", "select[data-order]")).select_by_value("-ap")
    precisions = [ap for _, _, ap in browser.execute_script(QUERIES)]
    assert precisions == sorted(precisions, reverse=True)
    Select(browser.find_element("css selector", "select[data-order]")).select_by_value("place")
    assert browser.execute_script(QUERIES) == everything

    confusion = browser.find_element("css selector", "input[data-filter=table-of-confusions]")
    confusion.send_keys("nobody at all")
    assert column(browser, "table-of-confusions", 0) == []
    light = browser.find_element("css selector", "input[data-highlight]")
    light.send_keys("person 4")
    assert browser.execute_script("return document.querySelectorAll('.point.on').length") == 6
    assert browser.find_element("css selector", "output[data-count=map-figure]").text == "6 of 60 images"
    assert complaints(browser) == []


def test_without_scripts_everything_is_there(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        look(browser, page, 1280, "light")
        assert not browser.find_element("css selector", ".controls").is_displayed()
        assert len(browser.find_elements("css selector", ".query")) == 12
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
