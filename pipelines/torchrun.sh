#!/usr/bin/env bash
# The stages on all GPUs of one machine (or on several processes of a CPU): every stage that computes with the
# networks is the same command under torchrun. Stop it and run it again, also with another number of processes.
#
#   bash pipelines/torchrun.sh RUN CORPUS...
#   PROCESSES=8 PRESET=base bash pipelines/torchrun.sh runs/base "texts/*.jsonl.zst"
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=$1
shift
preset=${PRESET:-small}
python=${PYTHON:-$root/.venv/bin/python}
processes=${PROCESSES:-$("$python" -c "import torch; print(max(1, torch.cuda.device_count()))")}
options=(--preset "$preset")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS") # a TOML file laid over the preset

together=("$python" -m torch.distributed.run --standalone --nproc-per-node "$processes" -m cola_cli)

"$python" -m cola_cli tokenize "$@" -o "$run/tokens" "${options[@]}"
"${together[@]}" train vae "$run/tokens" -o "$run/vae" "${options[@]}"
"${together[@]}" encode "$run/tokens" --vae "$run/vae" -o "$run/latents" "${options[@]}"
"${together[@]}" train prior "$run/latents" -o "$run/prior" "${options[@]}"
