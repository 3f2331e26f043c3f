"""cola sample --watch: the block being denoised, live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from cola_cli.model import Cola
    from cola_cli.sampling.prompts import Prompt
    from cola_cli.settings.sample import SampleSettings

FRAMES_PER_SECOND = 12


def watch_denoising(model: Cola, prompts: Iterable[Prompt], settings: SampleSettings) -> None:
    """Show prompts one after another: text so far, then the block as it would read at the current t.

    A token that the last step did not change is settled and set in plain type, one that still moves is dim.
    """
    from cola_cli.sampling.engine import Engine
    from cola_cli.sampling.rows import Request
    from cola_cli.stages.sample import encoded_prompt

    tokenizer = model.require_tokenizer()
    options = settings.options((tokenizer.end_of_text_id,))
    engine = Engine(model.vae, model.prior, options, 1, tokenizer.pad_id)
    for item, prompt in enumerate(prompts):
        ids = encoded_prompt(model, prompt)
        with Live(console=Console(), refresh_per_second=FRAMES_PER_SECOND) as live:
            done = Text(prompt.text, style="bold")
            previous: list[int] = []

            def show(
                t: float, block: list[list[int]], done: Text = done, live: Live = live
            ) -> None:
                nonlocal previous
                frame = done.copy()
                for place, token in enumerate(block[0]):
                    settled = place < len(previous) and previous[place] == token
                    frame.append(tokenizer.decode([token]), style="" if settled else "dim italic")
                frame.append(f"\nt = {t:.2f}", style="dim")
                previous = block[0]
                live.update(frame)

            engine.on_step = show
            for _, generation in engine.run([Request(item, ids)]):
                done.plain = prompt.text
                done.spans[:] = []
                done.stylize("bold", 0, len(prompt.text))
                done.append(tokenizer.decode(generation.ids))
                previous = []
            live.update(done)
        Console().print()
