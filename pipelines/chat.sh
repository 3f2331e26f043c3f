#!/usr/bin/env bash
# A small prior learns to obey: instructions for stories with their answers, in tokens of its tokenizer and latents of its VAE.
# The matched autoregressive model learns from the same rows. Both answer instructions that they have not seen; a rule judges.
# TASK=questions: instead of stories, questions on sentences of the Bible that bible.sh fetches.
# Stop it and run it again: it goes on. Run it with more STEPS: it goes on from its last step.
#
#   bash pipelines/chat.sh [RUN] [MODEL]      runs/chat and the model that ships by default; STEPS=3000, COUNT=20000, RATE=1e-3
#   cola chat runs/chat/prior                 afterwards
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/chat}
model=${2:-$root/cola_cli/demo}
cola=${COLA:-$root/.venv/bin/cola} # the command to run
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh"
mkdir -p "$run"

task=$root/pipelines/${TASK:-instructions}.py
[ "${TASK:-}" != questions ] || bash "$root/pipelines/bible.sh"
make() { # FILE WHAT COUNT SEED: by the script of the task
    [ -f "$run/$1" ] || { "$python" "$task" "${@:2}" > "$run/$1.new" && mv "$run/$1.new" "$run/$1"; }
}
make chats.jsonl chats "${COUNT:-20000}" 1
make prompts.jsonl prompts "${PROMPTS:-200}" 2

train=(--set "train.steps=${STEPS:-3000}" --set train.batch_size=8 --set train.validate_every=250 --set train.checkpoint_every=250)
train+=(--set "optim.lr=${RATE:-1e-3}" --set optim.warmup_steps=50 --set optim.schedule=constant --extend)

"$cola" tokenize "$run/chats.jsonl" --chat -o "$run/tokens" --tokenizer "$model/tokenizer.json" \
    --seq-len "${SEQ_LEN:-256}" --validation-fraction 0.02
"$cola" encode "$run/tokens" --vae "$model" -o "$run/latents"
"$cola" train prior "$run/latents" -o "$run/prior" --from "$model" "${train[@]}"
"$cola" train ar "$run/tokens" -o "$run/ar" --match "$run/prior" "${train[@]}"
for kind in prior ar; do
    "$cola" sample "$run/$kind" --prompts "$run/prompts.jsonl" -o "$run/$kind-answers-${STEPS:-3000}" --max-new-tokens "${NEW:-160}"
    echo "$kind: $("$python" "$task" judge "$run/$kind-answers-${STEPS:-3000}")"
done
