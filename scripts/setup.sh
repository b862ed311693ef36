#!/usr/bin/env bash
# Makes .venv and installs the project with the extras named, unless that was done already.
# Called by the other scripts; usable alone: scripts/setup.sh [extra]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="${1:-}"
python="${PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
fi
stamp="$root/.venv/installed${extra:+-$extra}"
want="$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum) $root"
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
  if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then # missing, or its making was cut off
    [ -n "$python" ] || { echo "error: Python 3.10 to 3.13 is missing (Debian: apt install python3)." >&2; exit 1; }
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      { echo "error: Python's venv is missing (Debian: apt install python3-venv)." >&2; exit 1; }
    "$python" -m venv "$root/.venv"
  fi
  echo "installing into $root/.venv: TensorFlow and what goes with it, about 700 MB to download" >&2
  quiet=--quiet
  [ -t 1 ] && quiet= # on a terminal, pip's own bars show that it lives
  "$root/.venv/bin/python" -m pip install $quiet --disable-pip-version-check \
    --editable "$root${extra:+[$extra]}"
  printf '%s' "$want" | tee "$stamp" > "$root/.venv/installed" # an extra brings all the rest along
fi
