#!/usr/bin/env bash
# The autoregressive model and LLaDA, matched to the prior of a run and trained on the same rows in the same order; then
# what all three write, and the benchmarks. What the run lacks is made first, by the quickstart and with its settings.
#
#   bash pipelines/baselines.sh [RUN]                         RUN is runs/quickstart by default
#   DATA=downloads/eval TASKS="lambada mmlu" bash pipelines/baselines.sh    data of `cola eval fetch`; LIMIT=100 items
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/quickstart}
tasks=${TASKS:-lambada mmlu obqa hellaswag race siqa squad story_cloze}
data=${DATA:-$root/data/eval} # a few made-up items of each task
cola=${COLA:-$root/.venv/bin/cola} # the command to run
options=(--preset "${PRESET:-tiny}")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS")
evaluation=("${options[@]}" --set cut_prompts=true)
[ -z "${LIMIT:-}" ] || evaluation+=(--limit "$LIMIT")
grep -qs '"status": "complete"' "$run/prior/manifest.json" || bash "$root/pipelines/quickstart.sh" "$run"

# Without preset and settings: the baselines take the prior's.
"$cola" train ar "$run/tokens" --match "$run/prior" -o "$run/ar"
"$cola" train llada "$run/tokens" --match "$run/prior" -o "$run/llada"

for model in prior ar llada; do
    # Drawn from what each model believes: guidance has no counterpart in the baselines.
    "$cola" sample "$run/$model" --prompts "${PROMPTS:-$root/data/prompts.jsonl}" -o "$run/drawn/$model" \
        "${options[@]}" --guidance 1 --temperature 1
    # The judge is one of the three: it favours its own kind.
    "$cola" eval text "$run/drawn/$model" --tokens "$run/tokens" --judge "$run/ar"
done
for task in $tasks; do
    for model in prior ar llada; do
        "$cola" eval run "$run/$model" --task "$task" --data "$data/$task.jsonl" \
            -o "$run/answers/$task-$model" "${evaluation[@]}"
    done
    "$cola" eval table "$run/answers/$task-"{prior,ar,llada}
done
