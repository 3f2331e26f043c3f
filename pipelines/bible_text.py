"""Chapters of a SWORD module as text files: python pipelines/bible_text.py MODULE FOLDER"""

import argparse
import html
import re
import struct
import zlib
from pathlib import Path

KEYBOARD = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-"})  # as prompts are typed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for testament in ("ot", "nt"):
        packed = (chosen.module / f"{testament}.bzz").read_bytes()
        index = (chosen.module / f"{testament}.bzs").read_bytes()
        # one record a book: offset, packed size, size
        for offset, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[offset : offset + size]).decode()
            book = re.sub(r"<(note|title)\b.*?</\1>", "", book, flags=re.S)
            for chapter in re.split(r"<chapter [^>]*sID[^>]*>", book)[1:]:
                if lines := paragraphs(chapter):
                    count += 1
                    (chosen.folder / f"{count:04}.txt").write_text("\n".join(lines) + "\n")


def paragraphs(chapter: str) -> list[str]:
    """The text of a chapter, a line each."""
    # a paragraph begins where a division or a line group does
    chapter = re.sub(r'<(div|lg|lb)\b[^>]*sID[^>]*type="(x-p|paragraph)"[^>]*>', "\n", chapter)
    text = html.unescape(re.sub(r"<[^>]*>", " ", chapter))
    text = re.sub(r"[ \t]+([,.;:?!’”)])", r"\1", text)
    text = re.sub(r"([“‘(])\s+", r"\1", text).translate(KEYBOARD)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return [line for line in lines if line]


if __name__ == "__main__":
    main()
