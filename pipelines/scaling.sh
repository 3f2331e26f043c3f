#!/usr/bin/env bash
# Cola DLM, an autoregressive model and LLaDA along compute, matched: minutes of a CPU core.
# For other sizes, corpora and schedulers see pipelines/study.sh, whose settings this takes.
#
#   bash pipelines/scaling.sh [RUN]
exec bash "$(dirname "$0")/study.sh" scaling "$@"
