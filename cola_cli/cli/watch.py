"""cola sample --watch: the block being denoised, live."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from cola_cli.api import Cola
    from cola_cli.corpus.tokenizer import TextTokenizer
    from cola_cli.sampling.engine import Engine, Glimpse
    from cola_cli.sampling.prompts import Prompt
    from cola_cli.sampling.requests import Generation, Request
    from cola_cli.settings.sample import SampleSettings

SECONDS_A_STEP = 0.08  # at least, so that the eye can follow a fast model
SETTLED = 3  # steps for which a token has not changed


class Page:
    """The text on the screen for one prompt: the prompt, finished blocks, and the block being denoised.

    Changing tokens are dots, newly stable ones dim, settled ones normal.
    """

    def __init__(self, prompt: str, ids: list[int], tokenizer: TextTokenizer) -> None:
        """`ids` are the tokens of the prompt."""
        self.text = Text.assemble((prompt, "bold"))
        self._prompt, self._ids, self.tokenizer = prompt, ids, tokenizer
        self._before = ids  # tokens before the block
        self._block: list[int] = []
        self._held: list[int] = []  # steps for which each token of the block has not changed

    def step(self, t: float, block: list[int]) -> Text:
        """The page when the block reads `block` at time t."""
        if len(block) == len(self._block):
            same = [old == new for old, new in zip(self._block, block, strict=True)]
            self._held = [held + 1 if ok else 0 for held, ok in zip(self._held, same, strict=True)]
        else:
            self._held = [0] * len(block)
        self._block = block
        page = self.text.copy()
        # tokens of one state together, as a character may be split between tokens
        start = 0
        for place in range(1, len(block) + 1):
            if place == len(block) or self._style(place) != self._style(start):
                style = self._style(start)
                words = self.tokenizer.continuation(
                    [*self._before, *block[:start]], block[start:place]
                )
                page.append(" ·" * (place - start) if style is None else words, style or "dim")
                start = place
        page.append(f"\n\nt = {t:.2f}", style="dim")
        return page

    def finish_block(self, found: Generation) -> None:
        """Take over the new tokens so far, and at the end the text, which a stop string may cut."""
        new = self.tokenizer.continuation(self._ids, found.ids)
        if found.finish != "running":
            new = found.text or ""
        self.text = Text.assemble((self._prompt, "bold"), new)
        self._before = [*self._ids, *found.ids]
        self._block = []

    def _style(self, place: int) -> str | None:
        held = self._held[place]
        return None if held == 0 else "dim" if held < SETTLED else "not dim"


def watch_denoising(model: Cola, prompts: Iterable[Prompt], settings: SampleSettings) -> None:
    """Show prompts one after another as they are continued; an interrupt leaves the text so far."""
    from cola_cli.sampling.requests import Request
    from cola_cli.stages.answers import encoded_prompt

    tokenizer = model.require_tokenizer()
    engine = model.sampler(settings.options((tokenizer.end_of_text_id,)), 1, tokenizer.pad_id)
    for item, prompt in enumerate(prompts):
        request = Request(item, encoded_prompt(model, prompt))
        page = Page(prompt.text, [*request.prompt], tokenizer)
        watch(engine, request, page, Console())


def watch(
    engine: Engine, request: Request, page: Page, console: Console, pause: float = SECONDS_A_STEP
) -> Generation:
    """Continue a request on the screen, where the page stays; a step takes `pause` seconds or more."""
    from cola_cli.sampling.texts import run_to_stops

    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def show(seen: list[Glimpse]) -> None:
                started = time.monotonic()
                live.update(tail(page.step(seen[0].t, seen[0].ids), console), refresh=True)
                time.sleep(max(0.0, pause - (time.monotonic() - started)))

            engine.on_step = show
            for _, generation in run_to_stops(engine, [request], page.tokenizer):
                page.finish_block(generation)
    finally:
        console.print(page.text, end="\n\n", soft_wrap=True)
    return generation


def tail(page: Text, console: Console) -> Text:
    """The last lines of a page, as many as the terminal shows."""
    lines = page.wrap(console, console.width)
    return Text("\n").join(lines[-max(1, console.height - 1) :])
