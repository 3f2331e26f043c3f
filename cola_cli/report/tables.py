"""Tables of artifacts and of their settings, with what differs between artifacts of a kind first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element, table
from cola_cli.report.quantities import DASH, count, duration, size

UPRIGHT = 4  # artifacts above which each gets a row
UNFOLDED = 15  # artifacts that are listed openly below the diagram
VALUE_LIMIT = 160  # characters of a setting


def artifact_table(artifacts: Sequence[Shown]) -> Markup:
    """Every artifact with its state, fingerprint, size and what it was made from."""
    rows = [
        [
            one.label,
            one.kind,
            state(one.state),
            element("code", one.short or DASH),
            DASH if one.bytes is None else size(one.bytes),
            _amount(one),
            DASH if not one.seconds else duration(one.seconds),
            _made_from(one),
        ]
        for one in artifacts
    ]
    columns = ["artifact", "kind", "state", "fingerprint", "size", "holds", "took", "made from"]
    written = table(columns, rows, "wordy")
    if len(rows) <= UNFOLDED:
        return written
    return element("details", element("summary", f"All {len(rows)} artifacts"), written)


def state(text: str) -> Markup:
    """A dot of the state's colour and its words."""
    dot = element("span", class_=f"dot {text.split(' ')[0]}", aria_hidden="true")
    return element("span", dot, text, class_="stated")


def settings_of(collected: Collected) -> list[Markup]:
    """Per kind: the settings that differ, shown; those that all share, folded."""
    kinds = dict.fromkeys(one.kind for one in collected.artifacts if one.kind != "?")
    return [_settings(kind, collected.of(kind)) for kind in kinds]


def _settings(kind: str, artifacts: Sequence[Shown]) -> Markup:
    flats = [_flat(one) for one in artifacts]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    differing = [name for name in names if len({flat.get(name) for flat in flats}) > 1]
    shared = [name for name in names if name not in differing]
    blocks: list[Markup | None] = []
    if differing:
        marked = [_marked([flat.get(name) for flat in flats]) for name in differing]
        labels = [one.label for one in artifacts]
        if len(artifacts) > max(UPRIGHT, len(differing)):
            turned = zip(*marked, strict=True)
            rows = [[label, *cells] for label, cells in zip(labels, turned, strict=True)]
            blocks.append(table(["differs", *differing], rows, "settings"))
        else:
            rows = [[name, *cells] for name, cells in zip(differing, marked, strict=True)]
            blocks.append(table(["differs", *labels], rows, "settings"))
    if shared:
        label = "the same in all" if len(artifacts) > 1 else artifacts[0].label
        rows = [[name, flats[0][name]] for name in shared]
        word = "setting" if len(shared) == 1 else "settings"
        blocks.append(
            element(
                "details",
                element("summary", f"{len(shared)} {word}", element("span", f" {label}")),
                table(["setting", "value"], rows, "settings"),
            )
        )
    heading = f"{kind}, {len(artifacts)} artifacts" if len(artifacts) > 1 else kind
    return element("div", element("h3", heading), blocks, class_="block close")


def _flat(artifact: Shown) -> dict[str, str]:
    """Settings and inputs as text."""
    flat = {name: _text(value) for name, value in artifact.settings.items()}
    inputs = {
        f"input {name}": artifact.sources.get(name, digest[:12])
        for name, digest in artifact.inputs.items()
    }
    return flat | inputs


def _marked(values: Sequence[str | None]) -> list[Markup]:
    """The values, highlighted where at least half of the artifacts have another (the first of equals)."""
    usual = max(values, key=values.count)
    half = 2 * values.count(usual) >= len(values)
    return [
        element("mark" if half and value != usual else "span", DASH if value is None else value)
        for value in values
    ]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]} [...]"


def _amount(one: Shown) -> str:
    found = one.statistics
    for name in ("parameters", "tokens", "prompts", "n"):
        if isinstance(value := found.get(name), int | float):
            return f"{count(value)} {'items' if name == 'n' else name}"
    return DASH


def _made_from(one: Shown) -> Markup:
    names = [
        one.sources.get(name) or element("span", f"{name} ", element("code", digest[:8]))
        for name, digest in one.inputs.items()
    ]
    pieces: list[Any] = []
    for name in names:
        pieces += [", ", name] if pieces else [name]
    return element("span", pieces)
