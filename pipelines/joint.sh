#!/usr/bin/env bash
# Joint training of prior and VAE on the latents of a run (the paper's second stage), beside the prior that was trained
# with the VAE frozen. What the run lacks is made first, by the quickstart and with its settings.
#
#   bash pipelines/joint.sh [RUN]               RUN is runs/quickstart by default
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/quickstart}
cola=${COLA:-$root/.venv/bin/cola} # the command to run
options=(--preset "${PRESET:-tiny}")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS")
[ -f "$run/words.txt" ] || bash "$root/pipelines/quickstart.sh" "$run"

"$cola" train prior "$run/latents" --mode joint --vae "$run/vae" --set model.prediction=velocity \
    --set model.stagger=0 --set model.causal_history=false -o "$run/joint" "${options[@]}"
"$cola" sample "$run/joint" --prompts "${PROMPTS:-$root/data/prompts.jsonl}" -o "$run/joint-samples" "${options[@]}"
for samples in samples joint-samples; do
    echo "$samples"
    "$cola" eval words "$run/$samples" --tokens "$run/tokens"
done
