"""The lineage diagram: cards in columns for a wide page, a rail with arcs for a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cola_cli.report.collect import WRITERS, Shown
from cola_cli.report.markup import Markup, element, joined, shortened
from cola_cli.report.quantities import count, number, percent, size

COLUMNS = {"tokens": 0, "vae": 1, "latents": 2} | dict.fromkeys(WRITERS, 3)
LAST_COLUMN = 4
CARD, GAP, LANE = 188, 42, 12  # pixels
LINE = 16
SPACE = 14  # between the cards of a column
LISTED = 9  # evaluations named on a card
RAIL = 74  # where the dots of the narrow diagram stand
ROW = 74


@dataclass(frozen=True)
class Node:
    """A card: one artifact, or all evaluations of one model."""

    members: tuple[Shown, ...]
    column: int

    @property
    def first(self) -> Shown:
        return self.members[0]

    @property
    def state(self) -> str:
        """The state of all, or of the first that is not complete."""
        others = [one.state for one in self.members if one.state != "complete"]
        return others[0] if others else "complete"

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def title(self) -> str:
        if len(self.members) == 1:
            return self.first.label
        return f"{len(self.members)} evaluations"

    @property
    def details(self) -> list[tuple[str, str]]:
        """Lines below the title, each with a class."""
        if len(self.members) == 1:
            weight = "" if self.first.bytes is None else f" · {size(self.first.bytes)}"
            metric, print_ = _key_metric(self.first), f"{self.first.short}{weight}"
            return [*([(metric, "metric")] if metric else []), (print_, "fingerprint")]
        lines = [
            (f"{one.statistics.get('task', one.label)} {_key_metric(one)}", "metric")
            for one in self.members[:LISTED]
        ]
        if len(self.members) > LISTED:
            lines.append((f"and {len(self.members) - LISTED} more", "metric"))
        return lines


def diagram(artifacts: Sequence[Shown]) -> Markup:
    """Both drawings; style.css shows the one that fits the page."""
    nodes = _nodes([one for one in artifacts if one.kind != "?"])
    edges = _edges(nodes)
    tops = _tops(nodes, edges)
    return element("div", _wide(nodes, edges, tops), _narrow(nodes, edges, tops), class_="lineage")


def _nodes(artifacts: Sequence[Shown]) -> list[Node]:
    evaluations: dict[str, list[Shown]] = {}
    nodes: list[Node] = []
    for one in artifacts:
        if one.kind == "evaluation":
            evaluations.setdefault(one.inputs.get("model", one.label), []).append(one)
        else:
            nodes.append(Node((one,), COLUMNS.get(one.kind, LAST_COLUMN)))
    nodes += [Node(tuple(members), LAST_COLUMN) for members in evaluations.values()]
    return nodes


def _edges(nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Pairs (source, target) of places in `nodes`."""
    places = {one.label: place for place, node in enumerate(nodes) for one in node.members}
    return sorted(
        {
            (places[source], target)
            for target, node in enumerate(nodes)
            for one in node.members
            for source in one.sources.values()
            if source in places and places[source] != target
        }
    )


def _height(node: Node) -> float:
    return 48 + LINE * len(node.details)


def _wide(
    nodes: Sequence[Node], edges: Sequence[tuple[int, int]], tops: dict[int, float]
) -> Markup:
    used = sorted({node.column for node in nodes})
    lefts = {column: place * (CARD + GAP) for place, column in enumerate(used)}
    passing = [
        (a, b) for a, b in edges if used.index(nodes[b].column) - used.index(nodes[a].column) != 1
    ]
    lanes = {source: 6 + LANE * i for i, source in enumerate(dict.fromkeys(a for a, _ in passing))}
    below = 10 + LANE * len(lanes)
    tops = {place: top + below for place, top in tops.items()}
    height = max(tops[place] + _height(node) for place, node in enumerate(nodes)) + 2
    width = lefts[used[-1]] + CARD
    curves, tips = [], []
    for a, b in edges:
        start_x, end_x = lefts[nodes[a].column] + CARD, lefts[nodes[b].column]
        start_y, end_y = tops[a] + 30, tops[b] + 30
        if (a, b) in passing:
            path = _around(start_x, tops[a] + 16, end_x, tops[b] + 16, lanes[a])
        else:
            middle = (start_x + end_x) / 2
            path = f"M{start_x} {start_y}C{middle} {start_y} {middle} {end_y} {end_x - 5} {end_y}"
        curves.append(element("path", d=path, class_="edge"))
        tip_y = tops[b] + (16 if (a, b) in passing else 30)
        arrow = f"M{end_x} {tip_y}l-7 -3.5v7z"
        tips.append(element("path", d=arrow, class_="arrow"))
    cards = [
        _card(node, lefts[node.column] + 0.5, tops[place] + 0.5) for place, node in enumerate(nodes)
    ]
    return element(
        "svg",
        element("g", curves, class_="edges"),
        tips,
        cards,
        viewBox=f"-1 0 {width + 2} {height:.0f}",
        style=f"max-width:{width + 2}px",
        class_="wide",
        role="img",
        aria_label="Lineage of the artifacts",
    )


def _tops(nodes: Sequence[Node], edges: Sequence[tuple[int, int]]) -> dict[int, float]:
    """The tops of all cards: beside their sources as far as the cards above leave room."""
    tops: dict[int, float] = {}

    def wish(place: int) -> float:
        sources = [tops[a] for a, b in edges if b == place and a in tops]
        return sum(sources) / len(sources) if sources else 0.0

    for column in range(LAST_COLUMN + 1):
        members = [place for place, node in enumerate(nodes) if node.column == column]
        free = 0.0
        for place in sorted(members, key=lambda place: (wish(place), place)):
            tops[place] = max(free, wish(place))
            free = tops[place] + _height(nodes[place]) + SPACE
    return tops


def _around(x1: float, y1: float, x2: float, y2: float, lane: float) -> str:
    """A path by the lane above all cards, with rounded corners."""
    r = 6
    up, down = x1 + GAP / 2 - 6, x2 - GAP / 2 + 6
    return (
        f"M{x1} {y1}H{up - r}Q{up} {y1} {up} {y1 - r}V{lane + r}Q{up} {lane} {up + r} {lane}"
        f"H{down - r}Q{down} {lane} {down} {lane + r}V{y2 - r}Q{down} {y2} {down + r} {y2}H{x2 - 5}"
    )


def _card(node: Node, x: float, y: float) -> Markup:
    frame = element("rect", x=x, y=y, width=CARD - 1, height=_height(node) - 1, rx=7, class_="card")
    return element("g", frame, _words(node, x + 13, y + 18, x + CARD - 14, 22, 26))


def _words(node: Node, x: float, y: float, end: float, title: int, line: int) -> list[Markup]:
    """What is written of a node, its kind at (x, y) and its state at `end`.

    title, line: characters of its title and of a further line.
    """
    return [
        element("title", "\n".join(_said(one) for one in node.members)),
        element("text", node.kind, x=x, y=y, class_="kind"),
        _state_mark(node.state, end, y - 4),
        element("text", shortened(node.title, title), x=x, y=y + 18, class_="title"),
        *(
            element("text", shortened(text, line), x=x, y=y + 19 + LINE * place, class_=class_)
            for place, (text, class_) in enumerate(node.details, 1)
        ),
    ]


def _narrow(
    nodes: Sequence[Node], edges: Sequence[tuple[int, int]], tops: dict[int, float]
) -> Markup:
    order = sorted(range(len(nodes)), key=lambda place: (nodes[place].column, tops[place]))
    rows: dict[int, float] = {}
    y = 16.0
    for place in order:
        rows[place] = y
        y += max(ROW, 34 + LINE * len(nodes[place].details) + 18)
    arcs = []
    for a, b in edges:
        bend = min(RAIL - 6, 16 + 0.17 * (rows[b] - rows[a]))
        path = (
            f"M{RAIL} {rows[a]}C{RAIL - bend * 1.3:.1f} {rows[a]}"
            f" {RAIL - bend * 1.3:.1f} {rows[b]} {RAIL - 5} {rows[b]}"
        )
        arcs.append(element("path", d=path, class_="edge"))
    entries = [
        element(
            "g",
            element("circle", cx=RAIL, cy=rows[place], r=4.5, class_="dot"),
            _words(nodes[place], RAIL + 16, rows[place] - 4, 342, 32, 38),
        )
        for place in order
    ]
    return element(
        "svg",
        element("g", arcs, class_="edges"),
        entries,
        viewBox=f"0 0 343 {y:.0f}",
        class_="narrow",
        role="img",
        aria_label="Lineage of the artifacts",
    )


def _state_mark(state: str, x: float, y: float) -> Markup:
    word = state.split(" ")[0]
    mark = element("circle", cx=x, cy=y, r=3.5, class_=f"state {word}")
    said = element("text", word, x=x - 8, y=y + 4, class_="kind end")
    return joined([mark, said if word != "complete" else None])


def _said(one: Shown) -> str:
    return f"{one.label}: {one.kind}, {one.state}, {one.fingerprint}"


# The most telling metric of each kind, and its wording; of other kinds the first of OF_MODELS that exists.
KEY_METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens": ("tokens", lambda value: f"{count(value)} tokens"),
    "vae": ("validation_accuracy", lambda value: f"{percent(value)} reconstructed"),
    "samples": ("prompts", lambda value: f"{count(value)} prompts"),
    "evaluation": ("accuracy", percent),
    "likelihoods": ("perplexity_elbo", lambda value: f"perplexity {number(value)}"),
}
OF_MODELS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("validation_flow", lambda value: f"flow loss {number(value)}"),
    ("validation_cross_entropy", lambda value: f"{number(value)} nats a token"),
    ("validation_loss", lambda value: f"validation loss {number(value)}"),
)


def _key_metric(artifact: Shown) -> str:
    """The one metric that says most about an artifact, in a few words, or nothing."""
    found = artifact.statistics
    if artifact.kind == "latents":
        match found.get("latent_shape"), found.get("rows"):
            case [int(positions), int(channels)], int(rows):
                return f"{rows:,} × {positions} × {channels}"
        return ""
    known = KEY_METRICS.get(artifact.kind)
    for name, say in [known] if known else OF_MODELS:
        if isinstance(value := found.get(name), int | float):
            return say(value)
    return ""
