"""Chapters of a SWORD module as text files: python pipelines/bible_text.py MODULE FOLDER"""

import html
import re
import struct
import sys
import zlib
from pathlib import Path

module, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
KEYBOARD = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-"})  # as prompts are typed
count = 0
for testament in ("ot", "nt"):
    packed = (module / f"{testament}.bzz").read_bytes()
    # one record a book: offset, packed size, size
    for offset, size, _ in struct.iter_unpack("<III", (module / f"{testament}.bzs").read_bytes()):
        book = zlib.decompress(packed[offset : offset + size]).decode()
        book = re.sub(r"<(note|title)\b.*?</\1>", "", book, flags=re.S)
        for chapter in re.split(r"<chapter [^>]*sID[^>]*>", book)[1:]:
            # a paragraph begins where a division or a line group does
            chapter = re.sub(
                r'<(div|lg|lb)\b[^>]*sID[^>]*type="(x-p|paragraph)"[^>]*>', "\n", chapter
            )
            text = html.unescape(re.sub(r"<[^>]*>", " ", chapter))
            text = re.sub(
                r"([“‘(])\s+", r"\1", re.sub(r"[ \t]+([,.;:?!’”)])", r"\1", text)
            ).translate(KEYBOARD)
            lines = (" ".join(line.split()) for line in text.split("\n"))
            if lines := [line for line in lines if line]:
                count += 1
                (folder / f"{count:04}.txt").write_text("\n".join(lines) + "\n")
