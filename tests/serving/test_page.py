"""The page in a real browser: blocks settle, two models side by side, keys, colours, a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cola_cli.serving.app import Access
from tests.report.test_report_browser import luminance
from tests.serving.browser import PROGRAM, Browser
from tests.serving.conftest import Running

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs chromium")
CTRL, ALT = 2, 1
READY = "document.querySelector('#seed')?.value"
DONE = "document.querySelectorAll('article[data-finished]').length"
TEXT = "document.querySelector('.text b').textContent + document.querySelector('.done').textContent"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(window: Browser, server: Running) -> Browser:
    """The page with few tokens asked for, which need not be slow."""
    window.look(1100)
    window.go(server.url + "/")
    window.until(READY)
    window.evaluate("document.querySelector('#max_tokens').value = 16")
    window.complaints.clear()
    return window


def test_a_text_settles_block_by_block_and_is_the_one_of_the_interface(
    page: Browser, server: Running
) -> None:
    page.evaluate(
        """globalThis.seen = []; new MutationObserver(() => {
            const tokens = [...document.querySelectorAll('.block span')];
            if (tokens.length) seen.push({
                t: Number(document.querySelector('.t').textContent),
                sure: tokens.map(one => Number(one.style.getPropertyValue('--sure'))),
                dots: document.querySelectorAll('.now circle').length,
                done: document.querySelector('.done').textContent.length,
            });
        }).observe(document.querySelector('#panes'), { childList: true, subtree: true })"""
    )
    page.press("Enter", modifiers=CTRL)
    page.until(f"{DONE} == 1")
    prompt = "Tom was a brave sailor who"
    body = {"prompt": prompt, "max_tokens": 16}
    answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
    assert page.evaluate(TEXT) == prompt + answer["choices"][0]["text"]
    seen = page.evaluate("seen")
    assert len({one["done"] for one in seen}) >= 4  # some were seen behind each of the blocks
    assert all(one["dots"] == 4 for one in seen)
    # grey at first, sure at the end
    early = [sure for one in seen if one["t"] > 0.9 for sure in one["sure"]]
    late = [sure for one in seen if one["t"] < 0.1 for sure in one["sure"]]
    assert max(early) < 0.5
    assert sum(late) / len(late) > 0.7
    # the picture shows where all latents have come to, within its frame
    old = page.evaluate(
        "[...document.querySelectorAll('.old circle')].map(e => [e.getAttribute('cx'), e.getAttribute('cy')])"
    )
    assert len(old) >= 16
    assert len({tuple(place) for place in old}) > 10
    assert all(abs(float(x)) <= 100 and abs(float(y)) <= 100 for x, y in old[-4:])
    assert "16 tokens" in page.evaluate("document.querySelector('.about').textContent")
    assert page.complaints == []  # nothing is fetched from elsewhere, nothing forbidden


def test_two_models_stand_side_by_side(page: Browser) -> None:
    page.evaluate(
        "document.querySelector('#slowly').click(); document.querySelector('#compare').click()"
    )
    assert page.evaluate("[...document.querySelector('#other').options].map(o => o.value)") == [
        "next", "masks",
    ]  # fmt: skip
    page.press("n", "KeyN", ALT)
    page.until(f"{DONE} == 2")
    assert page.evaluate("document.querySelector('#seed').value") == "1"
    boxes = page.evaluate(
        "[...document.querySelectorAll('article')].map(e => [e.offsetLeft, e.offsetTop])"
    )
    assert boxes[0][1] == boxes[1][1]
    assert boxes[0][0] < boxes[1][0]
    assert page.evaluate("document.querySelectorAll('article svg')[1].getClientRects().length") == 0
    assert page.complaints == []


def test_escape_ends_it_on_the_server_too(page: Browser, server: Running) -> None:
    page.evaluate("document.querySelector('#max_tokens').value = 1500")
    page.press("Enter", modifiers=CTRL)
    page.until("document.querySelector('.block span')")
    page.press("Escape")
    page.until("document.querySelector('#stop').disabled")
    page.until("!document.querySelector('#problem').textContent", 1)
    for _ in range(200):
        if server.scheduler.active == 0:
            return
        page.evaluate("new Promise(done => setTimeout(done, 50))")
    pytest.fail("the row is still computed")


def test_what_is_wrong_is_said_on_the_page(page: Browser) -> None:
    page.evaluate(
        "document.querySelector('#steps').max = ''; document.querySelector('#steps').value = 999"
    )
    page.press("Enter", modifiers=CTRL)
    page.until("document.querySelector('#problem').textContent.includes('256 passes')")


def test_a_key_is_asked_for_where_one_is_needed(
    window: Browser, start: Callable[..., Running]
) -> None:
    window.go(start(access=Access("k3y")).url + "/")
    window.until("!document.querySelector('#key-field').hidden")
    window.evaluate(
        "const key = document.querySelector('#key'); key.value = 'k3y';"
        "key.dispatchEvent(new Event('change'))"
    )
    window.until(READY)
    window.evaluate("sessionStorage.clear()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_is_readable_at_any_width_in_both_schemes(
    page: Browser, scheme: str, width: int, tmp_path: Path
) -> None:
    page.look(width, scheme=scheme)
    page.evaluate(
        "document.querySelector('#slowly').click(); document.querySelector('#max_tokens').value = 4"
    )
    page.press("Enter", modifiers=CTRL)
    page.until(f"{DONE} == 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length && !e.children.length"
        " && e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML)"
    )
    assert small == []
    colours = page.evaluate(
        "['article', '.text', '.about', '#go'].map(q => {"
        " const s = getComputedStyle(document.querySelector(q)); return [s.backgroundColor, s.color]; })"
    )
    card, words = colours[0][0], [colours[1][1], colours[2][1]]
    assert (luminance(card) > 0.8) == (scheme == "light")
    for ground, ink, least in [(card, words[0], 7), (card, words[1], 4.5), (*colours[3], 4.5)]:
        low, high = sorted((luminance(ground), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) > least


def test_every_control_has_a_name_and_can_be_reached_by_the_keyboard(page: Browser) -> None:
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].filter(e => e.tabIndex < 0"
        " || !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == []
