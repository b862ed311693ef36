"""The origin of a run: versions, the state of the code, the command and the machine, without the environment."""

import os
import platform
import shlex
import subprocess
import sys
import time

from mnist.machine import num_cores

import keras
import numpy as np
import tensorflow as tf

KEYS = (
    *("started", "command", "git_revision", "git_clean", "host", "processor", "cores"),
    *("python", "tensorflow", "keras", "numpy"),
)
# The keys of results.json that may differ between two runs with the same numbers.
OF_THE_HOUR = {"train_seconds", "images_per_second", *KEYS}


def describe():
    """Returns a flat dict of JSON with `KEYS`. A value that cannot be found is None.

    The revision comes from the folder of the program, or from the folder of this file if the program has no repository.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else sys.argv[:1]
    folders = [os.path.dirname(os.path.abspath(path)) for path in (sys.argv[0], __file__)]
    found = {folder: revision for folder in folders if (revision := _git(folder, "rev-parse", "HEAD"))}
    folder = next(iter(found), None)
    values = (
        time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        shlex.join(["python", *program, *sys.argv[1:]]),
        found.get(folder),
        folder and _is_clean(folder),
        platform.node(),
        _processor(),
        num_cores(),
        platform.python_version(),
        *(module.__version__ for module in (tf, keras, np)),
    )
    return dict(zip(KEYS, values, strict=True))


def _is_clean(folder):
    """Returns whether the tracked files are as committed, and no Python file is untracked. None if git fails."""
    found = _git(folder, "status", "--porcelain", "-z", "--untracked-files=all")
    if found is None:
        return None
    return not any(line.endswith(".py") or not line.startswith("??") for line in found.split("\0") if line)


def _git(folder, *arguments):
    """Returns what a git command prints in a folder. Returns None outside of a repository, or without git."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", folder, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def _processor():
    """Returns the name of the processor's model."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # Linux alone has this file
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
