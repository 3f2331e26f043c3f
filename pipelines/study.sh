#!/usr/bin/env bash
# A study of pipelines/studies/: every model trained and measured, then table and chart. Stop it whenever you like and
# run it again: it goes on where it was.
#
#   bash pipelines/study.sh NAME [RUN]                    RUN is runs/NAME by default
#   CORPUS="my/texts/*.txt" bash pipelines/study.sh rq1
#   PRESET=paper-2b bash pipelines/study.sh rq4           another size than the study names
#   SETTINGS=my.toml bash pipelines/study.sh rq1          a TOML laid over the study, table by table
#   SETTINGS=pipelines/studies/miniature.toml bash pipelines/study.sh rq1 runs/try      minutes on a CPU
#   COMMANDS=1 bash pipelines/study.sh rq1 > commands.sh  the shell commands instead, for a cluster's scheduler
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
run=${2:-runs/$name}
cola=${COLA:-.venv/bin/cola} # the command to run
[ -n "${COLA:-}" ] || bash pipelines/setup.sh >&2

options=("pipelines/studies/$name.toml" -o "$run")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS")
[ -z "${PRESET:-}" ] || options+=(--preset "$PRESET")
if [ -z "${CORPUS:-}" ]; then
    bash pipelines/corpus.sh
else
    # CORPUS may hold several names; patterns are cola's to open
    read -r -a texts <<< "$CORPUS"
    for text in "${texts[@]}"; do
        options+=(--corpus "$text")
    done
fi

if [ -n "${COMMANDS:-}" ]; then
    exec "$cola" study run "${options[@]}" --commands
fi
"$cola" study plan "${options[@]}"
"$cola" study run "${options[@]}"
"$cola" study table "$run"
"$cola" study plot "$run"
