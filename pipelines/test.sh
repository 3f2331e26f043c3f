#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest: bash pipelines/test.sh tests/models -x
set -euo pipefail
cd "$(dirname "$0")/.."
bash pipelines/setup.sh
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadgroup
fi
exec .venv/bin/python -m pytest "$@"
