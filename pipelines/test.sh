#!/usr/bin/env bash
# Set up and run the tests that are not marked slow; arguments go to pytest: bash pipelines/test.sh tests/models -x
# All of them: bash pipelines/test.sh -n 2 --dist loadgroup tests
set -euo pipefail
cd "$(dirname "$0")/.."
bash pipelines/setup.sh
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadgroup -m "not slow"
fi
exec .venv/bin/python -m pytest "$@"
