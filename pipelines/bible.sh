#!/usr/bin/env bash
# Fetch the World English Bible: 5 MB of public-domain modern English in simple sentences, a text file a chapter.
# It comes with Debian's package `sword-text-web`, so this wants apt-get and dpkg; nothing is installed.
#
#   bash pipelines/bible.sh [FOLDER]            downloads/bible by default
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

folder=${1:-$root/downloads/bible}
python=${PYTHON:-$root/.venv/bin/python}
sha256=c093eabfbbe755ad146bf0d28df51c6a18bfe4d8b36e8d8722b9b0e9d0a2e6f6 # of ot.bzz, then nt.bzz

if [ -f "$folder/.complete" ]; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "bible: fetching sword-text-web" >&2
if ! (cd "$work" && apt-get download --quiet sword-text-web >&2 && dpkg -x sword-text-web_*.deb .); then
    echo "bible: Debian's packages cannot be reached from here." >&2
    echo "       Use texts of your own: CORPUS=\"my texts/*.txt\" bash pipelines/demo-model.sh" >&2
    exit 4
fi
module=$work/usr/share/sword/modules/texts/ztext/engWEB2015eb
if [ "$(cat "$module/ot.bzz" "$module/nt.bzz" | sha256sum | cut -d' ' -f1)" != "$sha256" ]; then
    echo "bible: this is not the edition that the script knows (SHA-256 differs); nothing was kept." >&2
    exit 5
fi
"$python" "$root/pipelines/bible_text.py" "$module" "$folder"
touch "$folder/.complete"
echo "bible: $(ls "$folder" | wc -l) chapters in $folder" >&2
