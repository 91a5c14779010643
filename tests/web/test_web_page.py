"""The pages in a real browser: what is seen, what is refused, at three widths and in two lights."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from web.web_server import HOSTILE, Web

WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may be logged as an error, policy violations included."""
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    opened = context.new_page()
    errors: list[str] = []
    opened.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: errors.append(str(e)))
    yield opened
    assert opened.evaluate("window.hurt") is None
    context.close()
    assert errors == []


def overflow(page: Page) -> int:
    found: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found


def test_the_figures_stand_above_the_fold(web: Web, page: Page) -> None:
    page.goto(web.url)
    assert "75.0" in page.inner_text("#head-allocation")
    assert "40.0" in page.inner_text("#head-hfu")
    assert "28–41" in page.inner_text("#head-hfu")
    assert "30.0" in page.inner_text("#head-yield")
    strip = page.inner_text("#strip")
    assert "FIRING" in strip
    assert "95.9 %" in strip  # 95.96 never rounds onto its line
    assert "+1 standing (atlas MFU)" in strip
    map_box = page.locator("#map").bounding_box()
    assert map_box is not None
    assert map_box["y"] + map_box["height"] <= WIDE["height"]


def test_every_cluster_has_its_row_and_simulated_ones_are_marked(web: Web, page: Page) -> None:
    page.goto(web.url)
    rows = [row.inner_text() for row in page.locator("#rows tr").all()]
    assert len(rows) == 3
    assert "processor" in rows[1]
    assert "40.0" in rows[1]
    assert "SIM" in rows[2]
    assert page.locator(".band").count() == 0
    page.goto(f"{web.url}/?cluster={quote(HOSTILE, safe='')}")
    assert page.title().startswith("SIM")
    assert page.locator(".band").is_visible()
    favicon = page.locator("link[rel=icon]").get_attribute("href") or ""
    assert "sim" in favicon


def test_hostile_names_stay_text(web: Web, page: Page) -> None:
    for path in (
        "/",
        f"/nodes/{quote(HOSTILE + '-0', safe='')}",
        "/outages/allocation/atlas/2026-11-01T00:00Z",
    ):
        page.goto(web.url + path)
        assert HOSTILE in page.inner_text("body")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways_on_a_phone(web: Web, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for path in ("/", "/nodes/n0", "/outages/allocation/atlas/2026-11-01T00:00Z", "/api/docs"):
        page.goto(web.url + path)
        assert overflow(page) <= 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == ("rgb(14, 18, 22)" if scheme == "dark" else "rgb(245, 246, 248)")


def test_a_refresh_moves_nothing_and_keeps_what_is_open(web: Web, page: Page) -> None:
    page.goto(web.url)
    page.click("#steps > summary")
    before = page.locator("#rows tr").first.bounding_box()
    page.evaluate("document.getElementById('head-allocation').innerHTML = 'old'")
    # Asked until it is there: a refresh that is already under way lets no second one begin.
    page.wait_for_function(
        """() => {
            document.dispatchEvent(new Event('visibilitychange'));
            return document.getElementById('head-allocation').innerText.includes('75.0');
        }""",
        polling=200,
    )
    assert page.locator("#rows tr").first.bounding_box() == before
    assert page.locator("#steps").get_attribute("open") is not None
    assert page.locator("#staircase tbody tr").count() == 19


def test_a_click_on_the_map_opens_the_node(web: Web, page: Page) -> None:
    page.goto(web.url)
    page.locator(".cell").first.click()
    page.wait_for_url("**/nodes/n0?cluster=atlas")
    assert "llama" in page.inner_text("body")


def test_the_page_is_whole_without_scripts(web: Web, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(web.url)
    assert "75.0" in page.inner_text("#head-allocation")
    assert page.locator("#rows tr").count() == 3
    page.click(".menu summary >> nth=1")
    page.click("text=/^5 min$/")
    assert "window=5m" in page.url
    context.close()


def test_an_outage_is_one_small_page(web: Web) -> None:
    response = web.get("/outages/allocation/atlas/2026-11-01T00:00Z")
    assert response.status_code == 200
    assert len(response.content) < 50_000
    assert "<script" not in response.text
    assert web.get("/outages/allocation/atlas/nix").status_code == 404
