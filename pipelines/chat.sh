#!/usr/bin/env bash
# A small prior learns to obey: instructions for stories with their answers, in tokens of its tokenizer and latents of its VAE.
# The matched autoregressive model learns from the same rows (BASELINE= leaves it out). Both answer instructions that they have
# not seen; a rule judges.
# TASK=questions: instead of stories, questions on sentences of the Bible that bible.sh fetches.
# TASK=replies: instructions, stories, and beginnings of real sentences (CORPUS, or the texts of bible.sh and corpus.sh).
# Stop it and run it again: it goes on. Run it with more STEPS: it goes on from its last step.
# SEPARATE=16 packs several conversations into a sequence.
#
#   bash pipelines/chat.sh [RUN] [MODEL]      runs/chat and the model that ships by default; STEPS=1200, COUNT=20000, RATE=1e-3
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
chats=(chats "${COUNT:-20000}" 1)
prompts=(prompts "${PROMPTS:-200}" 2)
packing=(--seq-len "${SEQ_LEN:-192}" --separate "${SEPARATE:-0}" --validation-fraction 0.02)
case ${TASK:-} in
    questions) bash "$root/pipelines/bible.sh" ;;
    replies)
        if [ -z "${CORPUS:-}" ]; then
            bash "$root/pipelines/bible.sh"
            bash "$root/pipelines/corpus.sh"
            CORPUS="$root/downloads/bible/*.txt"$'\n'"$root/downloads/sotu/*.txt"
        fi
        IFS=$'\n' read -r -d '' -a texts <<< "$CORPUS" || true
        chats+=("${texts[@]}")
        prompts+=("${texts[@]}")
        packing+=(--chat-template "$root/pipelines/demo-chat.jinja" --malformed skip) # of sentences longer than a sequence
        ;;
esac
make() { # FILE ARGUMENTS...: by the script of the task
    [ -f "$run/$1" ] || { "$python" "$task" "${@:2}" > "$run/$1.new" && mv "$run/$1.new" "$run/$1"; }
}
make chats.jsonl "${chats[@]}"
make prompts.jsonl "${prompts[@]}"

steps=${STEPS:-1200}
train=(--set "train.steps=$steps" --set train.batch_size=8 --set train.validate_every=200 --set train.checkpoint_every=200)
train+=(--set "optim.lr=${RATE:-1e-3}" --set optim.lr_end=1e-4 --set optim.warmup_steps=50)
train+=(--set optim.schedule=constant-then-decay --extend)

"$cola" tokenize "$run/chats.jsonl" --chat -o "$run/tokens" --tokenizer "$model/tokenizer.json" \
    "${packing[@]}"
"$cola" encode "$run/tokens" --vae "$model" -o "$run/latents"
"$cola" train prior "$run/latents" -o "$run/prior" --from "$model" "${train[@]}" --set data.noisy_copies=2
[ -z "${BASELINE-ar}" ] || "$cola" train ar "$run/tokens" -o "$run/ar" --match "$run/prior" "${train[@]}"
for kind in prior ${BASELINE-ar}; do
    "$cola" sample "$run/$kind" --prompts "$run/prompts.jsonl" -o "$run/$kind-answers-$steps" --max-new-tokens "${NEW:-140}"
    echo "$kind: $("$python" "$task" judge "$run/$kind-answers-$steps")"
done
