"""The dashboard in a real Chromium: a quiet console, nothing hostile runs, forms, live numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dashboard_world as made
from dashboard_world import HOSTILE, KEY, TASK, World
from gateway_stores import call_of, served_of
from stillhouse.retrain.registry import Registry
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parents[2] / ".cache" / "clients" / "axe-core" / "axe.min.js"
PAGES = (
    "/",
    "/experiment",
    "/drift",
    "/traffic",
    "/runs",
    "/runs/run?name=reviews%2Frun",
    "/registry",
    "/frontier",
    "/online",
    "/experiment/act?action=kill",
    "/nothing",
)
CHARTS = {"/": 2, "/experiment": 2, "/drift": 2, "/runs/run?name=reviews%2Frun": 2, "/frontier": 1}
CHARTS |= {"/online": 1}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on the path")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made.build(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with made.served(made.dashboard_of(world)) as url:
        yield url


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Open]:
    """Opens a page, signed in by the form; what the console says fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(address: str = url, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on(
            "console",
            lambda m: said.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector("#numbers")
        return page

    yield open_page
    for one in contexts:
        one.close()
    # A page that is not there is told in the console by the browser itself.
    assert [one for one in said if "404" not in one and "409" not in one] == []


def wide(page: Any) -> int:
    """By how much a page is wider than its window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def test_pages_on_a_phone_in_the_dark(opened: Open, url: str) -> None:
    page = opened(viewport={"width": 360, "height": 740}, color_scheme="dark")
    for path in PAGES:
        page.goto(url + path)
        assert wide(page) <= 0, path
        drawn = page.locator(".canvas canvas").count()
        assert drawn == CHARTS.get(path, 0), path
        assert page.evaluate("window.hacked") is None
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 23, 28)"


def test_a_hostile_completion_is_shown_and_does_nothing(opened: Open, url: str) -> None:
    page = opened()
    page.goto(f"{url}/traffic?id=r59")
    assert page.locator(".answer.student pre").text_content() == HOSTILE
    assert page.locator(".answer.student pre *").count() == 0
    assert page.evaluate("window.hacked") is None
    # By the filters' own requests as well, whose answers htmx puts into the page.
    page.fill("input[name=id]", "r58")
    page.press("input[name=id]", "Enter")
    page.wait_for_selector("article[aria-label='Request r58']")
    page.fill("input[name=id]", "r59")
    page.press("input[name=id]", "Enter")
    page.wait_for_selector("article[aria-label='Request r59']")
    assert page.locator(".answer.student pre").text_content() == HOSTILE
    assert page.evaluate("window.hacked") is None
    page.goto(f"{url}/drift")
    page.locator("summary", has_text="example").first.click()
    assert page.evaluate("window.hacked") is None


def test_promotion_goes_over_a_question_and_a_reason(
    opened: Open, world: World, tmp_path: Path
) -> None:
    own = made.copy_of(world, tmp_path)
    registry = Registry(own.folder / "registry")
    newest = registry.entries(TASK)[0]
    with made.served(made.dashboard_of(own)) as address:
        page = opened(address)
        page.goto(f"{address}/registry")
        page.click(f"text=Promote… {newest.id}")
        assert page.locator("h1").text_content() == f"Promote {newest.id}?"
        page.click("button.go")  # without a reason the browser sends nothing
        assert registry.get(newest.id).stage == "candidate"
        page.fill("#reason", "better by the gate")
        page.click("button.go")
        page.wait_for_url(f"{address}/registry")
        assert registry.get(newest.id).stage == "live"
        page.click("text=Sign out")
        page.wait_for_url(f"{address}/login")
        page.goto(f"{address}/registry/promote?ref={newest.id}")
        assert "/login?next=" in page.url


def test_numbers_follow_the_log(opened: Open, world: World, tmp_path: Path) -> None:
    own = made.copy_of(world, tmp_path)
    with made.served(made.dashboard_of(own)) as address:
        page = opened(address)
        assert "60 requests" in page.locator("#numbers").text_content()
        page.locator("#task-1").focus()
        engine = open_database(own.url)
        log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None)
        log.offer(call_of(900), served_of(900, at=own.now, teacher_cost_usd=5.0))
        log.close()
        engine.dispose()
        page.locator("#numbers", has_text="61 requests").wait_for()
        # Whoever is on a link with the keyboard stays there when the table is put in anew.
        page.locator("#tasks", has_text="5.20 USD").wait_for()
        assert page.evaluate("document.activeElement.id") == "task-1"
        assert "5.20 USD" in page.locator("#numbers").text_content()
        made.write_lines(
            own.folder / "loop" / TASK / "alerts.jsonl",
            [made.alert(own.now) | {"summary": "a new alert"}],
        )
        page.locator("#alerts", has_text="a new alert").wait_for()
        page.goto(f"{address}/runs")  # a stream that breaks off is told in the console


def test_the_keyboard_alone_is_enough(opened: Open, url: str) -> None:
    page = opened(color_scheme="light")
    page.goto(f"{url}/traffic")
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("one => document.activeElement === one")
    box = skip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#theme").focus()
    style = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(style) == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.goto(f"{url}/drift")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    # A chart's figures are reached without a mouse.
    page.locator("figure summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure table").first.is_visible()


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Open, url: str, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("needs .cache/clients/axe-core: make clients")
    script = AXE.read_text(encoding="utf-8")
    page = opened(color_scheme=scheme)
    found = []
    for path in PAGES:
        page.goto(url + path)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.evaluate(script)
        told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            (path, one["id"], one["nodes"][0]["html"])
            for one in told["violations"]
            if one["impact"] in ("serious", "critical")
        ]
    assert found == []
