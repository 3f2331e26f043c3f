#!/usr/bin/env bash
# Make one small artifact a stage: make.sh DIRECTORY. Run once, with the version of cola whose artifacts must stay readable.
set -euo pipefail
settings=$(cd "$(dirname "$0")" && pwd)/settings.toml
cd "$1"
export COLA_THREADS=1
cola tokenize corpus.txt -o tokens --config "$settings"
cola train vae tokens -o vae --config "$settings"
cola encode tokens --vae vae -o latents
cola train prior latents -o prior --config "$settings"
cola train prior latents -o joint --mode joint --config "$settings"
cola train ar tokens -o ar --config "$settings"
cola train llada tokens -o llada --config "$settings"
cola sample prior --prompts prompts.jsonl -n 8 --steps 2 --seed 5 --temperature 1 -o samples
cola eval run prior --task lambada --data lambada.jsonl -o answers --set max_new_tokens=4 --set steps=2
cola export prior -o released
cola import released -o imported
cola train vae tokens -o interrupted --config "$settings" --set train.steps=120 &
until compgen -G "interrupted/checkpoints/*" >/dev/null; do sleep 0.05; done
kill -INT $!
wait $! || true
