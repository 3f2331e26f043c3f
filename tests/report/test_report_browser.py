"""cola report in a real browser: nothing sticks out on a phone, and both colour schemes can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.report.test_report import run, text  # noqa: F401  (fixtures)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=10000", "--dump-dom",
]  # fmt: skip
WIDTHS = (360, 390, 768, 1280)
# what `preferredColorScheme` is in the browser
SCHEMES = {"dark": 0, "light": 1}
MEASURE = """
const seen = {};
for (const frame of document.querySelectorAll('iframe')) {
  const page = frame.contentDocument, view = frame.contentWindow, body = page.body;
  const scrolls = one => { for (let e = one; e; e = e.parentElement)
    if (/auto|scroll|hidden/.test(view.getComputedStyle(e).overflowX)) return true; };
  const shown = [...body.querySelectorAll('*')].filter(e => e.getClientRects().length);
  seen[frame.width] = {
    wide: page.documentElement.scrollWidth,
    outside: shown.filter(e => !scrolls(e) && e.getBoundingClientRect().right > view.innerWidth + 1)
      .map(e => e.outerHTML.slice(0, 80)),
    colours: [body, page.documentElement].map(e => view.getComputedStyle(e).backgroundColor)
      .concat(view.getComputedStyle(body).color),
    charts: [...page.querySelectorAll('figure svg')].filter(e => e.getBoundingClientRect().width > 150)
      .length,
    small: shown.filter(e => e.childElementCount == 0 && e.textContent.trim()
      && parseFloat(view.getComputedStyle(e).fontSize) < 10).map(e => e.outerHTML.slice(0, 80)),
  };
}
document.body.innerHTML = '';
document.body.dataset.seen = JSON.stringify(seen);
"""


@pytest.fixture(scope="module", params=SCHEMES)
def seen(
    request: pytest.FixtureRequest,
    text: str,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, Any]]:
    """A colour scheme, and what a browser measures of the page at each width."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    folder = tmp_path_factory.mktemp("browser")
    frames = "".join(
        f'<iframe width="{width}" height="3000" srcdoc="{html.escape(text)}"></iframe>'
        for width in WIDTHS
    )
    (folder / "frames.html").write_text(
        '<!doctype html><meta charset="utf-8"><style>:root { color-scheme: light dark }</style>'
        f"<body>{frames}<script>onload = () => {{ {MEASURE} }}</script></body>"
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[request.param]}"]
    command += [f"file://{folder / 'frames.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search('data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return request.param, json.loads(html.unescape(found.group(1)))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG) of a computed colour."""
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_nothing_sticks_out_at_any_width(seen: tuple[str, dict[str, Any]]) -> None:
    for width in WIDTHS:
        found = seen[1][str(width)]
        assert found["outside"] == [], width
        assert found["wide"] <= width


def test_charts_and_letters_stay_large_enough(seen: tuple[str, dict[str, Any]]) -> None:
    for width in WIDTHS:
        assert seen[1][str(width)]["charts"] >= 6, width
        assert seen[1][str(width)]["small"] == [], width


def test_the_reader_s_colour_scheme_is_kept_and_text_stands_out(
    seen: tuple[str, dict[str, Any]],
) -> None:
    scheme, found = seen
    *grounds, ink = found["390"]["colours"]
    ground = next(colour for colour in grounds if not colour.endswith(", 0)"))
    bright = luminance(ground)
    assert bright > 0.8 if scheme == "light" else bright < 0.1
    low, high = sorted((bright, luminance(ink)))
    assert (high + 0.05) / (low + 0.05) > 7  # AAA
