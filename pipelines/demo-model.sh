#!/usr/bin/env bash
# The small model that ships with cola: stories from a grammar and the World English Bible, tokens, VAE, latents, prior, then
# instructions and the beginnings of other texts (replies.py), and both networks rounded to bf16. Four hours of one core.
# Stop it and run it again: it goes on.
#
#   bash pipelines/demo-model.sh [RUN] [MODEL]      runs/demo-model and RUN/model by default
#   bash pipelines/demo-model.sh runs/demo-model cola_cli/demo       replaces the one that ships
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/demo-model}
model=${2:-$run/model}
stories=${STORIES:-30000} # how many
more=${MORE:-5500} # steps of a second training of the prior, which begins with the weights of the first; 0: none
settings=${SETTINGS:-$root/pipelines/demo-model.toml}
cola=${COLA:-$root/.venv/bin/cola} # the command to run
export PYTHON=${PYTHON:-$root/.venv/bin/python}
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh"

given=${CORPUS:-}
if [ -z "$given" ]; then
    bash "$root/pipelines/bible.sh"
    CORPUS="$root/downloads/bible/*.txt"
fi
mkdir -p "$run"
if [ ! -f "$run/stories.txt" ]; then
    "$PYTHON" "$root/pipelines/stories.py" "$stories" 1 > "$run/stories.txt.new"
    mv "$run/stories.txt.new" "$run/stories.txt"
fi

IFS=$'\n' read -r -d '' -a texts <<< "$CORPUS" || true # several names or patterns: a line each
"$cola" tokenize "$run/stories.txt" "${texts[@]}" -o "$run/tokens" --config "$settings"
"$cola" train vae "$run/tokens" -o "$run/vae" --config "$settings"
"$cola" encode "$run/tokens" --vae "$run/vae" -o "$run/latents" --config "$settings"
"$cola" train prior "$run/latents" -o "$run/prior" --config "$settings"
prior=$run/prior
if [ "$more" -gt 0 ]; then
    prior=$run/prior-more
    "$cola" train prior "$run/latents" -o "$prior" --from "$run/prior" --config "$settings" \
        --set "train.steps=$more" --set train.data_seed=1
fi

"$cola" import "$prior" -o "$run/stories" --dtype bfloat16 # the weights alone, in half the size
BASELINE='' TASK=replies CORPUS=$given STEPS=${STEPS:-1800} bash "$root/pipelines/chat.sh" "$run/chat" "$run/stories"
"$cola" import "$run/chat/prior" -o "$model" --dtype bfloat16
"$cola" sample "$model" --prompt "Once upon a time there was" --max-new-tokens 96
