"""Draw the pictures of docs/tutorial.md with the demo model: python docs/pictures.py [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import cola_cli
from cola_cli.report.charts import Axis, Chart, Series
from cola_cli.report.drawing import drawing
from cola_cli.report.markup import Markup, element
from cola_cli.sampling.denoising import Denoising

SENTENCE = "The white lamp lay behind the door."
STORY = f"Clara was a little painter who lived by a river. {SENTENCE} Tom thanked her."
OPENING = "Tom was a brave sailor who lived near the sea. One day he"
STYLE = """
text { font: 14px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; } .page { fill: #ffffff; }
.faint { fill: #6e7781; } .moving { fill: #bc4c00; } .plus { fill: #bc4c00; } .minus { fill: #0969da; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .page { fill: #0d1117; }
.faint { fill: #8d96a0; } .moving, .plus { fill: #ffa657; } .minus { fill: #58a6ff; } }
"""
CHARACTER, LINE, MARGIN = 8.43, 22, 16  # pixels: width of a character, height of a line
COLUMNS = 84
SECONDS = 0.15  # that a state of the animation stays
LAST = 20  # states that the finished text stays


def picture(width: float, height: float, *parts: Markup, style: str = "") -> str:
    """An SVG file that stands alone."""
    return str(
        element(
            "svg",
            element("style", Markup(STYLE + style)),
            element("rect", width="100%", height="100%", class_="page"),
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.0f} {height:.0f}",
        )
    )


def written(pieces: list[tuple[str, str]]) -> Markup:
    """Pieces of text with their classes, broken into lines between words."""
    letters = [(letter, kind) for text, kind in pieces for letter in text.replace("\n", " ")]
    lines: list[list[tuple[str, str]]] = [[]]
    while letters:
        space = next((n for n, (one, _) in enumerate(letters[1:], 1) if one == " "), len(letters))
        word, letters = letters[:space], letters[space:]
        if len(lines[-1]) + len(word) > COLUMNS:
            lines.append([])
            word = word[1:] if word[0][0] == " " else word
        lines[-1] += word
    rows = []
    for number, line in enumerate(lines):
        spans: list[tuple[str, str]] = []
        for letter, kind in line:
            if spans and spans[-1][1] == kind:
                spans[-1] = spans[-1][0] + letter, kind
            else:
                spans.append((letter, kind))
        rows.append(
            element(
                "text",
                [element("tspan", text, class_=kind or None) for text, kind in spans],
                x=MARGIN,
                y=MARGIN + LINE * (number + 1),
                **{"xml:space": "preserve"},
            )
        )
    return element("g", rows)


def watched(found: Denoising) -> str:
    """The animation: noise becomes text, block after block."""
    states, done = [], ""
    for number, frame in enumerate(found.frames):
        if number and frame.block != found.frames[number - 1].block:
            whole = found.generation.text or ""
            done = whole[: len(done) + len(found.frames[number - 1].text)]
        states.append(([(OPENING, ""), (done, ""), (frame.text, "moving")], f"t = {frame.t:.2f}"))
    states += [([(OPENING, ""), (found.generation.text or "", "")], "t = 0.00")] * LAST
    share = 100 / len(states)
    style = f"""
.state {{ visibility: hidden; animation: show {SECONDS * len(states):.2f}s step-end infinite; }}
@keyframes show {{ 0% {{ visibility: visible; }} {share:.4f}% {{ visibility: hidden; }} }}
"""
    height = MARGIN * 2 + LINE * 6
    command = element(
        "text", "$ cola sample demo --prompt \"Tom was a brave sailor ...\" --watch",
        x=MARGIN, y=MARGIN + 8, class_="faint",
    )  # fmt: skip
    drawn = [
        element(
            "g",
            element("g", written(pieces), transform=f"translate(0 {LINE})"),
            element("text", time, x=MARGIN, y=height - MARGIN, class_="faint"),
            class_="state",
            style=f"animation-delay: {SECONDS * number:.2f}s",
        )
        for number, (pieces, time) in enumerate(states)
    ]
    return picture(COLUMNS * CHARACTER + 2 * MARGIN, height, command, *drawn, style=style)


def heat(values: Tensor, names: list[str]) -> str:
    """Latents (tokens, channels) as colours."""
    side, left = 24, 100
    cells = [
        element(
            "rect",
            x=left + side * column, y=MARGIN + side * row, width=side - 1, height=side - 1,
            class_="plus" if value > 0 else "minus", opacity=f"{min(1.0, abs(value) / 2):.2f}",
        )
        for row, line in enumerate(values.tolist())
        for column, value in enumerate(line)
    ]  # fmt: skip
    words = [
        element("text", name, x=MARGIN, y=MARGIN + side * row + 17)
        for row, name in enumerate(names)
    ]
    tokens, channels = values.shape
    return picture(left + side * channels + MARGIN, side * tokens + 2 * MARGIN, *cells, *words)


def steps(found: Denoising) -> str:
    """The first block at every step."""
    first = [frame for frame in found.frames if frame.block == found.frames[0].block]
    rows = [
        element(
            "text",
            element("tspan", f"t = {frame.t:.2f}  ", class_="faint"),
            element("tspan", frame.text.strip()),
            x=MARGIN, y=MARGIN + LINE * (number + 1), **{"xml:space": "preserve"},
        )
        for number, frame in enumerate(first)
    ]  # fmt: skip
    return picture(520, LINE * (len(first) + 1) + 2 * MARGIN, *rows)


@torch.inference_mode()
def survival(model: cola_cli.Cola) -> str:
    """Tokens read right by the decoder, and the prior's guess, along the time."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([model.require_tokenizer().encode(STORY)])
    size = model.prior.config.block_size
    tokens = tokens[:, : tokens.shape[1] // size * size]
    mean = model.vae.to_prior(model.encode(tokens).mean)
    decoded, guessed = [], []
    for t in torch.arange(0.05, 1.0, 0.05).tolist():
        z = (1 - t) * mean + t * torch.randn((16, *mean.shape[1:]), generator=generator)
        decoded.append((t, share(model.decode(z), tokens)))
        right = 0.0
        for begin in range(size, tokens.shape[1], size):
            own = slice(begin, begin + size)
            past = mean[:, :begin].expand(16, -1, -1)
            clean = z[:, own] - t * model.velocity(z[:, own], t, past)
            right += share(model.decode(clean), tokens[:, own]) * size
        guessed.append((t, right / (tokens.shape[1] - size)))
    return drawing(
        [
            Chart(
                "Tokens that are read right",
                "Of a story; mean of 16 draws of the noise.",
                Axis("t"),
                Axis("tokens", percent=True, low=0.0, high=1.0),
                [Series("decoder alone", decoded), Series("with the prior's guess", guessed, 1)],
            )
        ]
    )


def share(logits: Tensor, tokens: Tensor) -> float:
    """Of tokens that are the likeliest."""
    return float((logits.argmax(-1) == tokens).float().mean())


def main(folder: Path) -> None:
    """Draw all."""
    model = cola_cli.load("demo", "cpu")
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(SENTENCE)
    names = [tokenizer.continuation(ids[:at], ids[at : at + 1]).strip() for at in range(len(ids))]
    found = model.watch(OPENING, max_new_tokens=40, steps=12)
    for name, drawn in {
        "watch": watched(found),
        "latents": heat(model.encode(torch.tensor([ids])).mean[0], names),
        "block": steps(found),
        "noise": survival(model),
    }.items():
        (folder / f"{name}.svg").write_text(drawn + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "charts")
