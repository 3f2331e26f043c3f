#!/usr/bin/env bash
# RQ3 of the Cola DLM paper: which diffusion? Block size, timestep law, solver steps and guidance.
# Sized for a GPU; pipelines/study.sh says how to make it smaller, larger, or a scheduler's work.
#
#   bash pipelines/rq3.sh [RUN]
exec bash "$(dirname "$0")/study.sh" rq3 "$@"
