"""cola report: one page, whole, harmless, and with the artifacts' own numbers in it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import zstandard
from typer.testing import CliRunner

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.cli.main import app
from cola_cli.errors import InputError, OutputConflict, UsageError
from cola_cli.report.collect import collect
from cola_cli.report.latents import entropy_rank
from cola_cli.report.page import report_page
from cola_cli.report.quantities import (
    count,
    duration,
    linear_ticks,
    log_ticks,
    number,
    percent,
    size,
)
from cola_cli.training.metrics import Metrics

HOSTILE = "<script>alert(1)</script><img src=x onerror='a()'>\"&"
VOID = {"meta"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section"),
    *("nav", "a", "h1", "h2", "h3", "h4", "p", "div", "span", "strong", "code", "mark", "ul", "li"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"),
    *("svg", "g", "line", "path", "polyline", "rect", "circle", "text"),
}


class Page(HTMLParser):
    """A parsed page; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []  # the names above, and the text
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self._open), data))

    def within(self, tag: str) -> list[str]:
        """The texts directly or deeper inside elements of that name."""
        return [text for above, text in self.texts if tag in above]

    @property
    def words(self) -> str:
        return " ".join(text for above, text in self.texts if "style" not in above)

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [found for _, found in self.elements if name in found.get("class", "").split()]


def artifact(
    path: Path,
    kind: Any,
    inputs: dict[str, Path] | None = None,
    settings: dict[str, Any] | None = None,
    statistics: dict[str, Any] | None = None,
    metrics: list[dict[str, float]] | None = None,
    rows: list[dict[str, Any]] | None = None,
    finish: bool = True,
) -> Path:
    """An artifact as a stage would leave it."""
    prints = {
        name: read_manifest(source).fingerprint for name, source in (inputs or {}).items()
    } or {"corpus": "c" * 64}
    identity = Identity(stage=f"train {kind}", settings=settings or {}, inputs=prints)
    with Output.open(path, kind, identity, settings).writing() as writer:
        if metrics:
            table = Metrics(path / "metrics.parquet")
            for row in metrics:
                table.add(int(row["step"]), {n: v for n, v in row.items() if n != "step"})
            table.flush()
            writer.keep("metrics.parquet")
        if rows:
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            with writer.part(0, suffix=".jsonl.zst") as part:
                part.path.write_bytes(zstandard.ZstdCompressor().compress(lines))
                part.rows = len(rows)
        if finish:
            writer.finish(statistics)
    return path


LOSSES = [3.0, 2.5, 2.25, 2.125, 2.0625]
PRIOR_METRICS = [
    {"step": 10 * (place + 1), "loss": loss, "flow": loss, "learning_rate": 0.001 * place}
    for place, loss in enumerate(LOSSES)
]
LEVELS = {"validation_flow_of_zero": 3.25, "validation_flow_of_linear": 2.375}
PRIOR_METRICS[1] |= {"validation_flow": 2.4375, "validation_loss": 2.4375} | LEVELS
PRIOR_METRICS[4] |= {"validation_flow": 2.21875, "validation_loss": 2.21875} | LEVELS
WIDER = [
    {name: value - 0.25 if "flow" in name or "loss" in name else value for name, value in row.items()}
    | {name: value for name, value in LEVELS.items() if name in row}
    for row in PRIOR_METRICS
]  # fmt: skip


def sample_rows(*texts: str) -> list[dict[str, Any]]:
    prompts = ["Once upon a time", "A <b>bold</b> start"]
    return [
        {"id": str(place), "prompt": prompt, "text": text, "tokens": 5, "finish": "stop"}
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two priors, their samples and evaluations, an unfinished one, and measurements."""
    base = tmp_path_factory.mktemp("reports") / "demo"
    tokens = artifact(base / "tokens", "tokens", statistics={"tokens": 123_456})
    vae = artifact(
        base / "vae",
        "vae",
        {"tokens": tokens},
        {"model": {"latent_dim": 4}, "validation_noise": 0.5},
        {
            "parameters": 1000,
            "validation_log_snr": 1.25,
            "validation_effective_rank": 3.5,
            "validation_active_channels": 4.0,
            "validation_accuracy": 0.975,
            "validation_accuracy_noisy": 0.75,
        },
        [{"step": 10, "loss": 5.0, "validation_accuracy": 0.5}, {"step": 20, "loss": 4.0}],
    )
    latents = artifact(
        base / "latents",
        "latents",
        {"tokens": tokens, "vae": vae},
        statistics={
            "rows": 7,
            "latent_shape": [8, 4],
            "log_snr": 1.2,
            "channel_variance": [0.5, 2.0, 1.0, 0.5],
            "posterior_variance": [0.1, 0.3, 0.2, 0.4],
        },
    )
    prior = artifact(
        base / "prior",
        "prior",
        {"latents": latents},
        {"model": {"dim": 32}, "train": {"seed": 7}, "note": HOSTILE},
        {"validation_flow": 2.21875, "parameters": 2000},
        PRIOR_METRICS,
    )
    wider = artifact(
        base / "wider",
        "prior",
        {"latents": latents},
        {"model": {"dim": 64}, "train": {"seed": 7}, "note": HOSTILE},
        {"validation_flow": 1.96875, "parameters": 4000},
        WIDER,
    )
    artifact(
        base / "unfinished",
        "prior",
        {"latents": latents},
        {"model": {"dim": 32}},
        metrics=[{"step": 10, "flow": 2.9, "loss": 2.9}, {"step": 20, "flow": math.nan, "loss": 1}],
        finish=False,
    )
    for model, texts in ((prior, (HOSTILE, "plain")), (wider, ("another\x00 end\x1b", ""))):
        rows = sample_rows(*texts)
        artifact(base / f"samples-{model.name}", "samples", {"model": model}, rows=rows)
        found = {"accuracy": 0.375, "low": 0.25, "high": 0.5, "correct": 3, "n": 8}
        found |= {"valid_options": 0.625, "accuracy_given_valid": 0.6, "chance": 0.25}
        artifact(
            base / f"mmlu-{model.name}",
            "evaluation",
            {"model": model},
            {"task": "mmlu"},
            {"task": "mmlu", "cut_prompts": 2} | found,
        )
    curve = {str(t / 10): 1 - t / 20 for t in range(8)}
    diagnosis = {"tokens": 9, "accuracy": 1.0, "accuracy_at": curve, "log_snr": 1.0}
    diagnosis |= {"kl_per_channel": [0.5, 1.5, 1.0, 0.0], "active_channels": 3}
    (base / "diagnose.json").write_text(json.dumps(diagnosis))
    points = [
        {"family": family, "flops": 10.0**power, "metric": "loss", "value": value, "low": value / 2}
        for family, values in (("ours", (8.0, 4.0, 2.0)), (HOSTILE, (16.0, 8.0, -4.0)))
        for power, value in zip((17, 18, 19), values, strict=True)
    ]
    fits = [{"family": "ours", "metric": "loss", "coefficient": 1e3, "exponent": -0.125}]
    (base / "scaling.json").write_text(json.dumps({"points": points, "fits": fits}))
    return base


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return report_page([run])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_fetches_nothing_and_runs_nothing(text: str, page: Page) -> None:
    assert {tag for tag, _ in page.elements} <= ALLOWED
    anchors = {found["id"] for _, found in page.elements if "id" in found}
    for tag, found in page.elements:
        assert "src" not in found
        assert not any(name.startswith("on") for name in found)
        if "href" in found:
            assert tag == "a"
            assert found["href"].removeprefix("#") in anchors
    style = "".join(page.within("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in text
    policy = next(f for t, f in page.elements if f.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_the_page_suits_phones_and_both_colour_schemes(page: Page) -> None:
    assert any(found.get("name") == "viewport" for _, found in page.elements)
    style = "".join(page.within("style"))
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media (max-width: 640px)" in style


def test_every_artifact_is_named_with_its_state_and_fingerprint(run: Path, page: Page) -> None:
    cells = set(page.within("table"))
    places = sorted(path.parent for path in run.glob("*/manifest.json"))
    assert len(places) == 10
    for place in places:
        assert place.name in cells
        assert read_manifest(place).fingerprint[:12] in cells
    assert "abandoned" in cells
    assert "unfinished (abandoned)" in page.words


def test_the_lineage_shows_every_connection_in_both_drawings(page: Page) -> None:
    # tokens-vae, tokens-latents, vae-latents, latents to three priors, two priors to two each
    assert len(page.of_class("edge")) == 2 * (3 + 3 + 4)
    assert len(page.of_class("arrow")) == 10
    assert len(page.of_class("card")) == 10


def test_the_settings_that_differ_stand_out(page: Page) -> None:
    assert "64" in page.within("mark")
    assert "model.dim" not in page.within("details")
    assert "model.dim" in page.within("table")


def test_settings_that_two_artifacts_share_are_folded(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        artifact(tmp_path / name, "prior", settings={"seed": seed, "depth": 12})
    found = Page(report_page([tmp_path]))
    assert "depth" in found.within("details")
    assert "seed" not in found.within("details")
    assert found.within("mark") == ["2"]


def first_drawing(text: str) -> str:
    return text.split('role="img"')[1].split("</svg>")[0].split('<g class="legend">')[0]


def curves_of(text: str, title: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Class and pixels of every line in the first drawing of the chart with that title."""
    chart = text.split(f"<h4>{title}</h4>")[1].split("</figure>")[0]
    drawing = first_drawing(chart)
    for group in re.finditer(
        r'<g class="(series[^"]*)">(.*?)(?=<g class="series|$)', drawing, re.S
    ):
        for line in re.finditer(r'<polyline points="([^"]*)"', group[2]):
            pairs = [tuple(map(float, pair.split(","))) for pair in line[1].split()]
            yield group[1], pairs  # type: ignore[misc]


def test_the_curves_are_those_of_the_metrics(text: str, page: Page) -> None:
    curves = list(curves_of(text, "Flow matching loss"))
    faint = [pixels for class_, pixels in curves if "faint" in class_ and "c0" in class_]
    (pixels,) = faint
    assert len(pixels) == len(LOSSES)
    # On linear axes pixels are an affine function of the values, y downwards.
    slope = (pixels[-1][1] - pixels[0][1]) / (LOSSES[-1] - LOSSES[0])
    assert slope < 0
    for place, (loss, (x, y)) in enumerate(zip(LOSSES, pixels, strict=True)):
        assert y == pytest.approx(pixels[0][1] + slope * (loss - LOSSES[0]), abs=0.11)
        across = pixels[0][0] + place / 4 * (pixels[-1][0] - pixels[0][0])
        assert x == pytest.approx(across, abs=0.11)
    assert 600 < pixels[-1][0] - pixels[0][0] < 720
    assert 150 < pixels[-1][1] - pixels[0][1] < 330
    # ... and the same function as that of the labels of the axis.
    drawing = first_drawing(text.split("<h4>Flow matching loss</h4>")[1])
    labels = re.findall(r'y="([\d.]+)" class="tick end">([\d.]+)<', drawing)
    assert len(labels) >= 3
    for y, label in labels:
        expected = pixels[0][1] + slope * (float(label) - LOSSES[0])
        assert float(y) - 4 == pytest.approx(expected, abs=0.2)
    titles = page.within("title")
    assert "prior: 2.438 at optimiser step 20" in titles
    assert "prior: 2.219 at optimiser step 50" in titles
    assert "wider: 1.969 at optimiser step 50" in titles
    assert {"2.219", "1.969"} <= set(page.within("td"))


def test_simple_predictors_are_drawn_as_levels(page: Page) -> None:
    assert len(page.of_class("reference")) == 2 * 2
    assert "predicting zero" in page.within("text")
    assert "best linear" in page.within("text")


def test_levels_of_different_latents_are_told_apart_by_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        latents = artifact(tmp_path / name / "latents", "latents", settings={"of": name})
        for prior in ("one", "two"):
            place = tmp_path / name / prior
            artifact(place, "prior", {"latents": latents}, {"of": prior}, metrics=PRIOR_METRICS)
    found = Page(report_page([tmp_path]))
    colours = {level["class"] for level in found.of_class("reference")}
    assert colours == {"reference c0", "reference c2"}  # those of a/one and b/one
    assert "Losses on different latents cannot be compared" in found.words


def test_what_is_no_number_is_left_out_of_a_curve(run: Path, text: str) -> None:
    (unfinished,) = collect([run / "unfinished"]).artifacts
    assert unfinished.metrics["flow"] == [(10.0, 2.9)]
    assert "nan" not in text.lower()


def test_a_metric_that_never_moves_is_a_number_and_no_chart(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 1 / s, "validation_active_channels": 16.0} for s in (1, 2, 3)]
    artifact(tmp_path / "vae", "vae", metrics=rows)
    found = Page(report_page([tmp_path]))
    assert "Active channels" not in found.within("h4")
    assert "Active channels" in found.within("th")
    assert "16" in found.within("td")


def test_the_latents_are_described(text: str, page: Page) -> None:
    words = page.words
    assert "3.5" in page.within("td")
    assert "at most 3.36" in words  # exp of the entropy of 0.5, 2, 1, 0.5
    assert entropy_rank([1.0] * 8) == pytest.approx(8)
    assert entropy_rank([5.0, 0.0, 0.0]) == pytest.approx(1)
    assert "75.0\N{NARROW NO-BREAK SPACE}% at σ 0.5" in words
    signal, noise = curves_of(text, "Variance spectrum of the channels")
    assert len(signal[1]) == len(noise[1]) == 4
    assert [y for _, y in signal[1]] == sorted(y for _, y in signal[1])  # falling variance
    ((_, robust),) = curves_of(text, "Robustness to latent noise")
    assert len(robust) == 8
    ((_, kl),) = curves_of(text, "KL of the channels")
    assert len(kl) == 4


def test_samples_of_one_prompt_stand_side_by_side(text: str) -> None:
    block = text.split("Once upon a time</h3>")[1].split("block sample")[0]
    assert "samples-prior" in block
    assert "samples-wider" in block
    assert "another\N{REPLACEMENT CHARACTER} end\N{REPLACEMENT CHARACTER}" in block


def test_nothing_of_an_artifact_becomes_markup(text: str, page: Page) -> None:
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text
    shown = [words for _, words in page.texts if "alert(1)" in words]
    assert any(words == HOSTILE for words in shown)  # as the sample it is, letter for letter
    assert "A <b>bold</b> start" in page.within("h3")


def test_names_of_directories_become_no_markup(tmp_path: Path) -> None:
    name = '<img src=x onerror=a()>&"'
    prior = artifact(tmp_path / name / "prior", "prior", metrics=PRIOR_METRICS)
    artifact(tmp_path / name / "samples", "samples", {"model": prior}, rows=sample_rows("a", "b"))
    (tmp_path / name / "scaling.json").write_text("{")
    found = report_page([tmp_path / name])
    assert "<img" not in found
    assert name in Page(found).within("h1")


def test_benchmarks_show_interval_chance_and_valid_options(page: Page) -> None:
    cells = page.within("tbody")
    space = "\N{NARROW NO-BREAK SPACE}%"
    assert cells.count(f"37.5{space}") == 2
    assert cells.count(f" 25.0{space} to 50.0{space}") == 2
    for words in (f"62.5{space}", f"60.0{space}", f"25.0{space}", "3 of 8, 2 cut"):
        assert cells.count(words) == 2
    assert len(page.of_class("bar")) == 2
    assert len(page.of_class("chance")) == 2


def test_an_interval_without_width_is_said_to_mean_nothing(tmp_path: Path) -> None:
    found = {"task": "mmlu", "accuracy": 0.0, "low": 0.0, "high": 0.0, "correct": 0, "n": 4}
    artifact(tmp_path / "mmlu", "evaluation", statistics=found)
    assert "interval of width zero" in Page(report_page([tmp_path])).words


def test_scaling_is_drawn_on_logarithmic_axes(text: str, page: Page) -> None:
    section = text.split('<section id="scaling">')[1]
    drawing = first_drawing(section)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)
    (x1, y1), (x2, y2), (x3, y3) = ((float(x), float(y)) for x, y in circles)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.03)  # decades
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.03)  # halves
    assert len(page.of_class("interval")) >= 2 * 5
    assert "1 value that is not positive has no place on a logarithmic axis." in page.words
    assert "ours: 1,000 × FLOPs^\N{MINUS SIGN}0.125" in page.words
    assert "10¹⁸" in page.within("text")


def test_a_run_of_tokens_alone_has_no_charts_and_says_what_is_missing(tmp_path: Path) -> None:
    artifact(tmp_path / "tokens", "tokens", statistics={"tokens": 5})
    found = Page(report_page([tmp_path]))
    assert not any(tag == "figure" for tag, _ in found.elements)
    assert len(found.of_class("missing")) == 4  # training, latents, samples, benchmarks
    assert "cola sample PRIOR" in found.words
    assert "cola eval run PRIOR" in found.words
    assert "Scaling" not in found.within("h2")


def test_what_is_damaged_is_named_and_the_rest_shown(run: Path, tmp_path: Path) -> None:
    artifact(tmp_path / "prior", "prior", metrics=PRIOR_METRICS)
    broken = artifact(tmp_path / "broken", "prior", settings={"seed": 1}, metrics=PRIOR_METRICS)
    size_before = (broken / "metrics.parquet").stat().st_size
    (broken / "metrics.parquet").write_bytes(b"x" * size_before)
    lost = artifact(tmp_path / "lost", "tokens")
    (lost / "manifest.json").write_text("{}")
    (tmp_path / "scaling.json").write_text('{"points": [{"family": "a"}]}')
    found = report_page([tmp_path])
    words = Page(found).words
    assert "broken/metrics.parquet is damaged" in words
    assert "lost/manifest.json is not a valid manifest" in words
    assert "points.0.flops" in words
    assert "prior: 2.219 at optimiser step 50" in words
    assert str(tmp_path) not in found


def test_statistics_of_another_type_are_dashes(tmp_path: Path) -> None:
    odd = {"latent_shape": [32], "log_snr": "x", "validation_accuracy": "x", "validation_loss": []}
    for kind in ("vae", "latents", "prior"):
        artifact(tmp_path / kind, kind, statistics=odd, metrics=PRIOR_METRICS)
    assert "\N{EN DASH}" in Page(report_page([tmp_path])).words


def test_the_page_names_no_place_on_the_machine(run: Path, text: str) -> None:
    assert str(run.parent) not in text


def test_a_changed_input_makes_an_artifact_stale(tmp_path: Path) -> None:
    tokens = artifact(tmp_path / "tokens", "tokens")
    artifact(tmp_path / "vae", "vae", {"tokens": tokens})
    (tokens / "manifest.json").unlink()
    artifact(tokens, "tokens", settings={"seed": 1})
    assert "stale (tokens changed)" in Page(report_page([tmp_path])).words


def test_what_is_being_written_is_called_running_and_by_whom_is_not_told(tmp_path: Path) -> None:
    identity = Identity(stage="train vae", settings={}, inputs={})
    with Output.open(tmp_path / "vae", "vae", identity).writing():
        (one,) = collect([tmp_path]).artifacts
    assert one.state == "running"


def test_many_artifacts_are_listed_in_a_fold(tmp_path: Path) -> None:
    for place in range(16):
        artifact(tmp_path / f"mmlu-{place}", "evaluation", settings={"seed": place})
    found = Page(report_page([tmp_path]))
    assert "All 16 artifacts" in found.within("summary")
    assert {f"mmlu-{place}" for place in range(16)} <= set(found.within("details"))


def test_several_runs_share_charts_under_their_own_names(tmp_path: Path) -> None:
    for name, metrics in (("first", PRIOR_METRICS), ("second", WIDER)):
        artifact(tmp_path / name / "prior", "prior", settings={"of": name}, metrics=metrics)
    found = Page(report_page([tmp_path / "first", tmp_path / "second"]))
    assert found.within("h1") == ["first, second"]
    assert found.within("h4").count("Flow matching loss") == 1
    legend = [words for above, words in found.texts if above[-2:] == ("g", "text")]
    assert {"first/prior", "second/prior"} <= set(legend)


def test_of_two_copies_of_an_input_the_one_beside_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        tokens = artifact(tmp_path / name / "tokens", "tokens")
        artifact(tmp_path / name / "vae", "vae", {"tokens": tokens})
    sources = {one.label: one.sources for one in collect([tmp_path]).of("vae")}
    assert sources == {f"{name}/vae": {"tokens": f"{name}/tokens"} for name in ("a", "b", "c")}


def test_an_artifact_given_twice_is_shown_once(run: Path) -> None:
    collected = collect([run, run / "prior", run / "prior" / ".." / "vae"])
    labels = [one.label for one in collected.artifacts]
    assert len(labels) == len(set(labels)) == 10


def test_single_artifacts_and_lone_measurements_are_enough(run: Path, tmp_path: Path) -> None:
    (alone,) = collect([run / "prior"]).artifacts
    assert alone.label == "prior"
    assert alone.metrics["flow"] == [(10.0 * (i + 1), loss) for i, loss in enumerate(LOSSES)]
    (tmp_path / "scaling.json").write_text((run / "scaling.json").read_text())
    assert len(Page(report_page([tmp_path])).of_class("large")) == 1


def test_a_long_training_is_thinned_out_but_keeps_its_ends(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 3.0 - s / 1e4} for s in range(1, 5001)]
    artifact(tmp_path / "vae", "vae", metrics=rows)
    text = report_page([tmp_path])
    ((_, line),) = curves_of(text, "Loss")
    assert 500 <= len(line) <= 700
    assert {"1", "5,000"} <= set(Page(text).within("th"))


def test_the_same_artifacts_give_the_same_bytes(run: Path, text: str) -> None:
    assert report_page([run]) == text


def test_it_needs_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from cola_cli.report.page import report_page\n"
        "report_page([Path(sys.argv[1])]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_the_command_writes_the_page_and_writes_it_again(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "report.html"
    for _ in range(2):
        result = CliRunner().invoke(app, ["report", str(run), "-o", str(place)])
        assert result.exit_code == 0, result.output
        Page(place.read_text(encoding="utf-8"))


def test_the_command_touches_nothing_else(run: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter.html"
    letter.write_text("<p>mine</p>")
    result = CliRunner().invoke(app, ["report", str(run), "-o", str(letter)])
    assert result.exit_code == OutputConflict.exit_code
    assert letter.read_text() == "<p>mine</p>"
    for place in (tmp_path, run / "prior" / "report.html"):
        result = CliRunner().invoke(app, ["report", str(run), "-o", str(place)])
        assert result.exit_code == UsageError.exit_code


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        report_page([tmp_path])
    with pytest.raises(InputError):
        report_page([tmp_path / "missing"])


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(1.93, 2.61, 4) == [2.0, 2.2, 2.4, 2.6]
    assert log_ticks(0.5, 2000, 5) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(1, 8, 5) == pytest.approx([1, 2, 5])
    assert len(log_ticks(1e-20, 1e20, 5)) <= 6


def test_quantities_read_well() -> None:
    assert [number(x) for x in (0, 12345.678, 0.00012345, 2.5)] == [
        "0",
        "12,346",
        "0.0001234",
        "2.5",
    ]
    assert number(-1.5e-7) == "\N{MINUS SIGN}1.5·10⁻⁷"
    assert number(3.2e18) == "3.2·10¹⁸"
    assert [count(x) for x in (950, 12_300, 2_550_000)] == ["950", "12.3k", "2.55M"]
    assert [size(x) for x in (1, 1500, 2_000_000_000)] == ["1 B", "1.5 kB", "2 GB"]
    assert [duration(x) for x in (5.61, 125, 3720)] == ["5.6 s", "2 min 5 s", "1 h 2 min"]
    assert percent(None) == "\N{EN DASH}"
