#!/usr/bin/env bash
# Runs the tests: scripts/test.sh [arguments of pytest]
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
"$scripts/setup.sh" test
cd "$scripts/.."
exec .venv/bin/python -m pytest "$@"
