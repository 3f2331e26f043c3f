#!/usr/bin/env bash
# Make .venv in the repository and install cola in it, with its development tools.
# Runs nothing twice: it is over at once when the environment is already there.
# Another interpreter: PYTHON=python3.12 bash pipelines/setup.sh. A GPU machine: TORCH=torch==2.11.0 ...
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}

if [ -x .venv/bin/cola ] && cmp -s pyproject.toml .venv/installed-pyproject.toml; then
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: cola needs Python 3.11 or newer; name one with PYTHON=..." >&2
    exit 2
}
echo "setup: making .venv (once; a few minutes)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch first and pinned, so that no other package's range pulls a larger build; Python compiles the modules that
# are imported when they are, where pip would compile all of them
install=(.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check)
"${install[@]}" "$torch"
"${install[@]}" --editable '.[dev]'
cp pyproject.toml .venv/installed-pyproject.toml
