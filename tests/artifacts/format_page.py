"""What each kind of artifact holds, as the section of docs/architecture.md, from the types.

`python -m tests.artifacts.format_page` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts.kinds import KINDS, TypedArtifact

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
BEGIN = "<!-- from artifacts/kinds.py: `just format-page` -->\n"
END = "<!-- end -->\n"
TABLES = {
    "statistics": "in the manifest",
    "part_statistics": "in a part's record",
    "columns": "column of a part",
}


def section() -> str:
    """All kinds as Markdown."""
    return "\n".join(_kind(name, kind) for name, kind in KINDS.items())


def page_with(text: str) -> str:
    """The page with this section."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}"


def _kind(name: str, kind: type[TypedArtifact[Any]]) -> str:
    promise = kind.contract()
    lines = [f"### {name}", "", *(line.strip() for line in promise["description"].splitlines())]
    if promise["files"]:
        lines += ["", "| file | |", "|---|---|"]
        lines += [f"| `{file}` | {meaning} |" for file, meaning in promise["files"].items()]
    for table, place in TABLES.items():
        if table in promise:
            if about := promise[table].get("description"):
                lines += ["", about]
            lines += ["", f"| {place} | type | |", "|---|---|---|", *_fields(promise[table])]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any]) -> list[str]:
    needed = schema.get("required", [])
    lines = []
    for name, about in schema["properties"].items():
        kind = _type(about, schema.get("$defs", {}))
        meaning = about.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind}{'' if name in needed else ', optional'} | {meaning} |")
    return lines


def _type(about: dict[str, Any], models: dict[str, Any]) -> str:
    if "$ref" in about:
        fields = models[about["$ref"].rpartition("/")[2]]["properties"]
        return f"{{{', '.join(fields)}}}"
    if "anyOf" in about:
        return " or ".join(_type(one, models) for one in about["anyOf"])
    if "enum" in about:
        return " or ".join(about["enum"])
    if about["type"] == "array":
        if "prefixItems" in about:
            return f"[{', '.join(_type(one, models) for one in about['prefixItems'])}]"
        return f"list of {_type(about['items'], models)}"
    if about["type"] == "object":
        return f"name to {_type(about['additionalProperties'], models)}"
    if about.get("format") == "binary":
        return "bytes"
    return str(about["type"])


if __name__ == "__main__":
    PAGE.write_text(page_with(section()), encoding="utf-8")
