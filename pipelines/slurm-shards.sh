#!/usr/bin/env bash
#SBATCH --job-name=cola-shards
#SBATCH --array=0-63
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
# A data stage as an array of jobs, each of which makes a share of the parts; then the same command as an array of one,
# which is the whole, completes the artifact:
#
#   shards=$(sbatch --parsable pipelines/slurm-shards.sh tokenize "texts/*.jsonl" -o runs/big/tokens)
#   sbatch --dependency="afterok:$shards" --array=0-0 pipelines/slurm-shards.sh tokenize "texts/*.jsonl" -o runs/big/tokens
#
# `encode` (with --gpus=1), `sample -o`, `eval run` and `likelihood -o` the same.
set -euo pipefail

exec "${PYTHON:-.venv/bin/python}" -m cola_cli "$@" --shard auto
