"""Samples side by side: one prompt, what every run made of it."""

from __future__ import annotations

from collections.abc import Sequence

from cola_cli.artifacts.kinds import SamplesRow
from cola_cli.report.charts import swatch
from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element

OPEN = 6  # prompts shown before the fold
MOST = 48
TEXT_LIMIT = 6000  # characters of a text shown


def continuations(collected: Collected) -> list[Markup]:
    """A block a prompt; empty when there are no samples."""
    runs = [run for run in collected.of("samples") if run.samples]
    prompts: dict[tuple[str, int], list[tuple[Shown, SamplesRow]]] = {}
    for run in runs:
        seen: dict[str, int] = {}
        for sample in run.samples:
            turn = seen.get(sample.prompt, 0)  # of a prompt that a run was given several times
            seen[sample.prompt] = turn + 1
            prompts.setdefault((sample.prompt, turn), []).append((run, sample))
    # Prompts that most runs answered are those that can be compared.
    order = sorted(prompts, key=lambda prompt: -len(prompts[prompt]))[:MOST]
    blocks = [_block(prompt, prompts[prompt, turn]) for prompt, turn in order]
    rest = blocks[OPEN:]
    if not rest:
        return blocks
    more = element("summary", f"{len(rest)} more prompts")
    return [*blocks[:OPEN], element("details", more, rest)]


def _block(prompt: str, found: Sequence[tuple[Shown, SamplesRow]]) -> Markup:
    return element(
        "div",
        element("h3", _cut(prompt), class_="prompt", dir="auto"),
        element("div", [_text(run, sample) for run, sample in found], class_="texts"),
        class_="block sample",
    )


def _text(run: Shown, sample: SamplesRow) -> Markup:
    words = f"{sample.tokens} token{'' if sample.tokens == 1 else 's'}"
    said = element("p", "(nothing but the end of the text)", class_="note")
    if sample.text.strip():
        said = element("p", _cut(sample.text.lstrip(" ")), class_="text", dir="auto")
    finish = FINISH.get(sample.finish, sample.finish)
    note = element("p", ", ".join(filter(None, [words, finish])), class_="note")
    return element("div", element("h4", swatch(run.colour), run.named), said, note, class_="panel")


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} [...]"


FINISH = {
    "stop": "ended by itself",
    "length": "cut at the limit",
    "running": "not finished",
}
