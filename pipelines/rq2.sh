#!/usr/bin/env bash
# RQ2 of the Cola DLM paper: which latent space? Fixed, joint, interval and from scratch; the mask loss; the logSNR.
# Sized for a GPU; pipelines/study.sh says how to make it smaller, larger, or a scheduler's work.
#
#   bash pipelines/rq2.sh [RUN]
exec bash "$(dirname "$0")/study.sh" rq2 "$@"
