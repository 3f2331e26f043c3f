#!/usr/bin/env bash
#SBATCH --job-name=cola-prior
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# The prior on several machines under SLURM. Five minutes before its time is up the job gets SIGTERM, saves, exits
# with 143 and is put back into the queue, where it goes on.
#
#   sbatch pipelines/slurm.sh RUN [OPTIONS OF cola train prior]          RUN holds finished latents
#   sbatch pipelines/slurm.sh runs/big --set train.parallel=fsdp --set train.compile=true
#
# Tokenizing and encoding need no such job: pipelines/slurm-shards.sh is an array of independent ones.
set -euo pipefail

run=$1
shift
python=${PYTHON:-.venv/bin/python}
options=(--preset "${PRESET:-base}")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS") # a TOML file laid over the preset
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}

code=0
# torch reads the rank of a process from these variables
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "$@"
' cola "$python" -m cola_cli train prior "$run/latents" -o "$run/prior" "${options[@]}" "$@" || code=$?

if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
