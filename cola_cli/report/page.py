"""The page: sections in order, each with what it shows or one sentence on what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cola_cli.report.benchmarks import benchmark_table
from cola_cli.report.collect import Collected, collect
from cola_cli.report.continuations import continuations
from cola_cli.report.latents import latent_statistics
from cola_cli.report.lineage import diagram
from cola_cli.report.markup import Markup, element, joined
from cola_cli.report.quantities import duration, size
from cola_cli.report.study import scaling_plots
from cola_cli.report.tables import artifact_table, settings_of
from cola_cli.report.training import training_curves
from cola_cli.version import __version__

GENERATOR = "cola report"
MARK = f'name="generator" content="{GENERATOR}"'
# If anything slips through the escaping, browsers still run and fetch nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_page(runs: Sequence[Path]) -> str:
    """The HTML page of everything at or below `runs`; the same artifacts give the same bytes.

    Raises InputError when one of them is not a directory or holds nothing to show.
    """
    return render(collect(runs))


def render(collected: Collected) -> str:
    """The page of what was collected."""
    sections = [
        _lineage(collected),
        _section(
            "Settings",
            "What differs between artifacts of one kind stands out; the rest is folded.",
            settings_of(collected),
            "No artifact here could be read.",
        ),
        _section(
            "Training",
            "",
            training_curves(collected),
            "No metrics of training: no vae, prior or baseline with metrics is among these.",
        ),
        _section(
            "Latents",
            "",
            latent_statistics(collected),
            "No latents, vae or prior with statistics of latents is among these.",
            _latents_missing(collected),
        ),
        _section(
            "Samples",
            "One prompt, what each run made of it. Not selected: the first ones of every artifact.",
            continuations(collected),
            "No samples. `cola sample PRIOR --prompts FILE -o SAMPLES` makes some.",
        ),
        _section(
            "Benchmarks",
            "",
            benchmark_table(collected),
            "No finished evaluation. `cola eval run PRIOR --task mmlu --data FILE -o OUTPUT` makes one.",
        ),
    ]
    plots = scaling_plots(collected.scalings)
    if collected.scalings:
        missing = "scaling.json holds no points that a logarithmic plot can show."
        sections.append(_section("Scaling", "", plots, missing))
    body = element(
        "body",
        element(
            "header", _heading(collected), _contents(bool(collected.scalings)), _problems(collected)
        ),
        element("main", sections),
        element("footer", element("p", f"Made by cola {__version__}.")),
    )
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{collected.title} · cola report"),
        element("style", style),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _heading(collected: Collected) -> Markup:
    kinds: dict[str, int] = {}
    for one in collected.artifacts:
        kinds[one.kind] = kinds.get(one.kind, 0) + 1
    total = sum(one.bytes or 0 for one in collected.artifacts)
    seconds = sum(one.seconds for one in collected.artifacts)
    artifacts = len(collected.artifacts)
    facts = [f"{artifacts} artifact{'' if artifacts == 1 else 's'}"] if artifacts else []
    facts += [size(total)] if total else []
    facts += [f"made in {duration(seconds)}"] if seconds else []
    return joined(
        [
            element("p", "cola report", class_="brand"),
            element("h1", collected.title),
            element("p", " · ".join(facts), class_="lead"),
        ]
    )


def _contents(scaling: bool) -> Markup:
    titles = ["Lineage", "Settings", "Training", "Latents", "Samples", "Benchmarks"]
    titles += ["Scaling"] if scaling else []
    links = [element("a", title, href=f"#{title.lower()}") for title in titles]
    return element("nav", links, aria_label="Sections")


def _problems(collected: Collected) -> Markup | None:
    if not collected.problems:
        return None
    listed = element("ul", [element("li", problem) for problem in collected.problems])
    return element(
        "div", element("p", element("strong", "Could not be read")), listed, class_="problems"
    )


def _lineage(collected: Collected) -> Markup:
    readable = [one for one in collected.artifacts if one.kind != "?"]
    return _section(
        "Lineage",
        "",
        [
            *([diagram(readable)] if readable else []),
            *([artifact_table(collected.artifacts)] if collected.artifacts else []),
        ],
        "No artifacts here.",
    )


def _latents_missing(collected: Collected) -> str:
    if collected.diagnoses or not collected.of("vae", "latents", "prior"):
        return ""
    return (
        "No curve of robustness to noise: `cola diagnose vae VAE --tokens TOKENS --json >"
        " RUN/diagnose.json` measures it."
    )


def _section(
    title: str,
    lead: str,
    content: Sequence[Markup],
    missing: str,
    remark: str = "",
) -> Markup:
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="lead") if lead and content else None,
        content,
        None if content else element("p", _with_code(missing), class_="missing"),
        element("p", _with_code(remark), class_="missing") if content and remark else None,
        id=title.lower(),
    )


def _with_code(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    pieces = text.split("`")
    return joined(
        element("code", piece) if place % 2 else piece for place, piece in enumerate(pieces)
    )
