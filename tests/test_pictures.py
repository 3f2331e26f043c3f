"""The pictures of the tutorial can be drawn again, and are well-formed."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_script_draws_what_the_tutorial_shows(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, DOCS / "pictures.py", tmp_path],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    text = (DOCS / "tutorial.md").read_text()
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 4
    for path in drawn:
        assert f"charts/{path.name}" in text
        assert ET.parse(path).getroot().tag.endswith("svg")
        assert (DOCS / "charts" / path.name).exists()
    watched = (tmp_path / "watch.svg").read_text()
    assert watched.count('class="state"') > 50
