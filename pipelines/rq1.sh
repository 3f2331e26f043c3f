#!/usr/bin/env bash
# RQ1 of the Cola DLM paper: does the best timestep law move with the latent dimension? loc x dimension.
# Sized for a GPU; pipelines/study.sh says how to make it smaller, larger, or a scheduler's work.
#
#   bash pipelines/rq1.sh [RUN]
exec bash "$(dirname "$0")/study.sh" rq1 "$@"
