#!/usr/bin/env bash
# The stages with those over data as shards on Ray: a cluster whose machines see these files, or this machine alone.
# Stop it and run it again; a worker that dies costs the part that it was making.
#
#   bash pipelines/ray.sh RUN CORPUS...
#   RAY_ADDRESS=ray://head:10001 PRESET=base bash pipelines/ray.sh /shared/runs/base "/shared/texts/*.jsonl.zst"
#
# PROMPTS=prompts.jsonl has the prior continue them. The machines need the extra `ray` of cola and one version of Python.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=$1
shift
preset=${PRESET:-small}
python=${PYTHON:-$root/.venv/bin/python}
options=(--preset "$preset")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS") # a TOML file laid over the preset

cola=("$python" -m cola_cli)

"${cola[@]}" tokenize "$@" -o "$run/tokens" "${options[@]}" --on ray
"${cola[@]}" train vae "$run/tokens" -o "$run/vae" "${options[@]}"
"${cola[@]}" encode "$run/tokens" --vae "$run/vae" -o "$run/latents" "${options[@]}" --on ray
"${cola[@]}" train prior "$run/latents" -o "$run/prior" "${options[@]}"
[ -z "${PROMPTS:-}" ] || "${cola[@]}" sample "$run/prior" --prompts "$PROMPTS" -o "$run/samples" --on ray
