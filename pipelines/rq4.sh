#!/usr/bin/env bash
# RQ4 of the Cola DLM paper: Cola DLM, trained jointly, against an autoregressive model and LLaDA along compute.
# Sized for a GPU; PRESET=paper-2b is the paper's size, and pipelines/study.sh says the rest.
#
#   bash pipelines/rq4.sh [RUN]
exec bash "$(dirname "$0")/study.sh" rq4 "$@"
