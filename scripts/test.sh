#!/bin/sh
# Runs the tests: scripts/test.sh [arguments of pytest]
set -eu
unset CDPATH # with it, cd prints a path
trap 'exit 130' INT
scripts="$(cd "$(dirname "$0")" && pwd)"
"$scripts/setup.sh" test
cd "$scripts/.."
exec .venv/bin/python -m pytest "$@"
