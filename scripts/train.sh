#!/bin/sh
# Trains: scripts/train.sh [flags of python -m mnist.train]
set -eu
unset CDPATH # with it, cd prints a path
trap 'exit 130' INT
scripts="$(cd "$(dirname "$0")" && pwd)"
"$scripts/setup.sh"
exec "$scripts/../.venv/bin/python" -m mnist.train "$@"
