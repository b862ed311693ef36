#!/usr/bin/env bash
# Trains: scripts/train.sh [flags of python -m mnist.train]
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
"$scripts/setup.sh"
exec "$scripts/../.venv/bin/python" -m mnist.train "$@"
