#!/usr/bin/env bash
# Fetch the World English Bible: 5 MB of public-domain modern English in simple sentences, a text file a chapter.
# It comes with Debian's package `sword-text-web`, so this wants apt-get and dpkg; nothing is installed.
#
#   bash pipelines/bible.sh [FOLDER]            downloads/bible by default
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-downloads/bible}
python=${PYTHON:-.venv/bin/python}
sha256=c093eabfbbe755ad146bf0d28df51c6a18bfe4d8b36e8d8722b9b0e9d0a2e6f6 # of ot.bzz, then nt.bzz

if [ -f "$folder/.complete" ]; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "bible: fetching sword-text-web" >&2
if ! (cd "$work" && apt-get download --quiet sword-text-web >&2 && dpkg -x sword-text-web_*.deb .); then
    echo "bible: Debian's packages cannot be reached from here." >&2
    echo "       Use texts of your own: CORPUS=\"my/texts/*.txt\" bash pipelines/demo-model.sh" >&2
    exit 4
fi
module=$work/usr/share/sword/modules/texts/ztext/engWEB2015eb
if [ "$(cat "$module/ot.bzz" "$module/nt.bzz" | sha256sum | cut -d' ' -f1)" != "$sha256" ]; then
    echo "bible: this is not the edition that the script knows (SHA-256 differs); nothing was kept." >&2
    exit 5
fi
"$python" - "$module" "$folder" <<'PYTHON'
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
            chapter = re.sub(r'<(div|lg|lb)\b[^>]*sID[^>]*type="(x-p|paragraph)"[^>]*>', "\n", chapter)
            text = html.unescape(re.sub(r"<[^>]*>", " ", chapter))
            text = re.sub(r"([“‘(])\s+", r"\1", re.sub(r"[ \t]+([,.;:?!’”)])", r"\1", text)).translate(KEYBOARD)
            lines = (" ".join(line.split()) for line in text.split("\n"))
            if lines := [line for line in lines if line]:
                count += 1
                (folder / f"{count:04}.txt").write_text("\n".join(lines) + "\n")
PYTHON
touch "$folder/.complete"
echo "bible: $(ls "$folder" | wc -l) chapters in $folder" >&2
