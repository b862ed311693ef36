#!/bin/sh
# Makes .venv and installs the project with the extras named, unless that was done already.
# Called by the other scripts; usable alone: scripts/setup.sh [extra]
set -eu
unset CDPATH # with it, cd prints a path
trap 'exit 130' INT
root="$(cd "$(dirname "$0")/.." && pwd)"
extra="${1:-}"
venv="$root/.venv"
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
supported() { case "$1" in 3.10 | 3.11 | 3.12 | 3.13) true ;; *) false ;; esac; }
wanted() { echo "$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum) $root $(version "$venv/bin/python")"; }

stamp="$venv/installed${extra:+-$extra}"
if [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted)" ]; then
  exit
fi

found="$(version "$venv/bin/python")"
if [ -z "$found" ]; then
  problem="its Python is gone"
elif ! supported "$found"; then
  problem="its Python is $found"
elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # also if the Python is newer than its packages
  problem="it has no pip for its Python $found"
else
  problem=
fi

if [ -n "$problem" ]; then
  python="${PYTHON:-}"
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if [ -z "$python" ] && supported "$(version "$candidate")"; then
      python="$candidate"
    fi
  done
  [ -n "$python" ] || { echo "error: Python 3.10 to 3.13 is missing (Debian: apt install python3)." >&2; exit 1; }
  supported "$(version "$python")" || { echo "error: PYTHON=$python is not a Python 3.10 to 3.13." >&2; exit 1; }
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    { echo "error: Python's venv is missing (Debian: apt install python3-venv)." >&2; exit 1; }
  if [ -f "$venv/installed" ]; then # made here
    echo "removing $venv to make it again, because $problem" >&2
    rm -rf "$venv"
  elif [ -e "$venv" ] || [ -L "$venv" ]; then
    old="$venv-$(date +%Y%m%d-%H%M%S)"
    echo "moving $venv to $old to make another, because $problem" >&2
    mv "$venv" "$old"
  fi
  mkdir "$venv"
  : > "$venv/installed"
  said="$("$python" -m venv "$venv" 2>&1)" || { echo "error: cannot make $venv: $said" >&2; exit 1; }
fi

what="TensorFlow and what goes with it, about 700 MB to download"
if [ -d "$venv/lib/python$(version "$venv/bin/python")/site-packages/tensorflow" ]; then
  what="what is missing${extra:+ for [$extra]}"
fi
echo "installing into $venv: $what" >&2
quiet=--quiet
[ -t 1 ] && quiet= # on a terminal, pip's own bars show that it lives
# These would install elsewhere, or only a part. 0 also wins over a pip.conf.
unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_NO_DEPS PIP_DRY_RUN PIP_REQUIRE_HASHES
# python -m pip would print a traceback for Ctrl-C while it imports its own modules.
PIP_USER=0 "$venv/bin/python" -c '
try:
    import runpy
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
except KeyboardInterrupt:
    raise SystemExit(130)
' install $quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}"
wanted | tee "$stamp" > "$venv/installed" # an extra brings all the rest along
