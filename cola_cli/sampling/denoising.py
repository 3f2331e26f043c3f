"""How a text came about: what each block read at every step from noise to its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from cola_cli.sampling.requests import Generation


@dataclass(frozen=True)
class Frame:
    """A block before one step: its number, the time t (1 is noise, 0 clean), and how it would read as now."""

    block: int
    t: float
    text: str


@dataclass(frozen=True)
class Denoising:
    """A prompt, the frames of its continuation in their order, and the continuation."""

    prompt: str
    frames: Sequence[Frame] = field(repr=False)
    generation: Generation

    def _repr_html_(self) -> str:
        """The text, and below it a row a step; what will stay in a row's text is bold."""
        rows = []
        for at, frame in enumerate(self.frames):
            following = self.frames[at + 1 :]
            last = next((f.text for f in reversed(following) if f.block == frame.block), frame.text)
            words = " ".join(
                f"<b>{escape(word)}</b>" if word == final else escape(word)
                for word, final in _aligned(frame.text, last)
            )
            rows.append(f"<tr><td>{frame.block}</td><td>{frame.t:.2f}</td><td>{words}</td></tr>")
        return (
            f"<p><b>{escape(self.prompt)}</b>{escape(self.generation.text or '')}</p>"
            "<table><tr><th>block</th><th>t</th><th>reads</th></tr>" + "".join(rows) + "</table>"
        )


def _aligned(text: str, last: str) -> list[tuple[str, str]]:
    """Each word of a text with the word at its place in the last one."""
    words, final = text.split(), last.split()
    return list(zip(words, [*final, *[""] * len(words)], strict=False))
