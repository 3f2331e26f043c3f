"""The pages of the documentation site that are made, not written: a hook of mkdocs (mkdocs.yml).

The README is the first page; commands come from the command line itself, settings from their declarations.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BAR = r"\|"  # within a cell of a table


def commands() -> str:
    """Every command with its help, by typer's own writer."""
    import typer
    from typer.cli import get_docs_for_click

    from cola_cli.cli.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="cola")
    return get_docs_for_click(obj=command, ctx=context, name="cola", title="Commands")


def settings() -> str:
    """Every setting of every stage: default, value in the presets, meaning."""
    from cola_cli.settings.describe import about, sections, shown
    from cola_cli.settings.tables import TABLES

    lines = ["# Settings"]
    for table, model in TABLES.items():
        lines.append(f"\n## {table}\n\n{about(model)}\n")
        for section, (what, own) in sections(table).items():
            if section:
                lines.append(f"\n### {table}.{section}\n\n{what}\n")
            lines.append("| setting | default | presets | what it is |\n|---|---|---|---|")
            for one in own:
                presets = (f"{name} {shown(value)}" for name, value in one.presets.items())
                cells = [f"`{one.name}`", shown(one.default), ", ".join(presets), one.about]
                lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """The Markdown of each page by its name."""
    texts = {
        name: (ROOT / name).read_text()
        for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
    }
    return texts | {
        "index.md": (ROOT / "README.md").read_text(),
        "commands.md": commands(),
        "settings.md": settings(),
        "api.md": "# Python\n\n::: cola_cli.api\n\n::: cola_cli.stages.functions\n",
    }


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the files of docs/."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of the repository are links of the site: pages lie side by side; other files are not on it."""
    flat = re.sub(r"\]\((?:\.\./|docs/)+([\w.-]+\.md|charts/)", r"](\1", markdown)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#|[\w.-]+\.md|charts/)[^)]*\)", r"\1", flat)
