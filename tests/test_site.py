"""The documentation builds as a site, strictly: every page, link and docstring that it names exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cola_cli.settings.tables import TABLES
from tests.cli.odd_words import commands

ROOT = Path(__file__).parents[1]


def test_the_site_has_every_command_setting_and_page(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "commands/index.html").read_text()
    for name in commands():
        assert f"<code>cola {name}</code>" in page, name
    page = (tmp_path / "settings/index.html").read_text()
    assert all(f'id="{table}"' in page for table in TABLES)
    assert 'id="cola_cli.api.load"' in (tmp_path / "api/index.html").read_text()
    for file in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / file.stem / "index.html").exists()
