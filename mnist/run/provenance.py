"""The origin of a run: versions, the state of the code, the command and the machine, without the environment."""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time

import mnist
from mnist.machine import num_cores

import keras
import numpy as np
import tensorflow as tf

KEYS = (
    *("started", "command", "git_revision", "git_clean", "program_revision", "program_clean"),
    *("package_version", "package_revision", "package_clean", "host", "processor", "cores"),
    *("python", "tensorflow", "keras", "numpy"),
)
MAX_CHANGES = 200_000  # characters of the changes that are kept with a run
_MAX_NEW = 100  # files
_DIFF = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
# The keys of results.json that may differ between two runs with the same numbers.
OF_THE_HOUR = {"train_seconds", "images_per_second", *KEYS}


def describe():
    """Returns a flat dict of JSON with `KEYS`. A value that cannot be found is None.

    A file has the revision of the repository around it, unless git ignores it there, as in an environment of Python.
    `git_revision` is the revision of the program, or without one the revision of this package.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else sys.argv[:1]
    program_file, package_file = _files()
    of_program = _describe_code(program_file)
    is_part = os.path.dirname(program_file) == os.path.dirname(package_file)
    of_package = of_program if is_part else _describe_code(package_file)
    values = (
        time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        shlex.join(["python", *program, *sys.argv[1:]]),
        *(of_program if of_program[0] else of_package),
        *of_program,
        mnist.__version__,
        *of_package,
        platform.node(),
        _processor(),
        num_cores(),
        platform.python_version(),
        *(module.__version__ for module in (tf, keras, np)),
    )
    return dict(zip(KEYS, values, strict=True))


def changes(origin):
    """Returns the changes since the revisions of the program and of this package, as a text in the format of git.

    It holds the changes of tracked files, and new files of Python. It is cut after `MAX_CHANGES` characters.

    Args:
      origin: a dict. The result of `describe`.

    Returns: a string. It is "" if no code is known to have changed.
    """
    roots, texts = [], []
    for path, name in zip(_files(), ("program_clean", "package_clean"), strict=True):
        root = _git(os.path.dirname(path), "rev-parse", "--show-toplevel") if origin[name] is False else None
        if root and root not in roots:
            roots.append(root)
            root = root.removesuffix("\n")
            new = [name for state, name in _status(root) or () if state == "??" and name.endswith(".py")]
            texts.append(_git(root, *_DIFF, "HEAD"))
            texts += [_git(root, *_DIFF, "--no-index", "--", os.devnull, name) for name in new[:_MAX_NEW]]
    text = "".join(text or "" for text in texts)
    return text if len(text) <= MAX_CHANGES else f"{text[:MAX_CHANGES]}\n... cut after {MAX_CHANGES:,} characters\n"


def _files():
    """Returns the paths of the program and of this file. A notebook stands for a program in the current folder."""
    is_file = os.path.isfile(sys.argv[0]) and os.path.basename(sys.argv[0]) != "ipykernel_launcher.py"
    return os.path.abspath(sys.argv[0]) if is_file else os.path.join(os.getcwd(), ""), os.path.abspath(__file__)


def _describe_code(path):
    """Returns the revision of the repository around a file, and whether it is clean. Each is None if not known.

    A repository is clean if its tracked files are as committed, and if no Python file is untracked.
    """
    folder = os.path.dirname(path)
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision or _git(folder, "check-ignore", path):
        return None, None
    found = _status(folder)
    is_clean = found is not None and not any(name.endswith(".py") or state != "??" for state, name in found)
    return revision.strip(), None if found is None else is_clean


def _status(folder):
    """Returns a state and a name of each file of a repository that is not as committed. None if git fails."""
    found = _git(folder, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    return None if found is None else [(line[:2], line[3:]) for line in found.split("\0") if line]


def _git(folder, *arguments):
    """Returns what a git command prints in a folder, of a diff the first `MAX_CHANGES` + 1 characters, or None."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", folder, *arguments]
    # Git sets these for its hooks, where they name another repository than the one around the folder.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    with tempfile.TemporaryFile("w+", errors="replace", newline="") as printed:
        try:
            done = subprocess.run(command, stdout=printed, stderr=subprocess.DEVNULL, timeout=10, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        printed.seek(0)
        differs = done.returncode == 1 and "--no-index" in arguments
        most = MAX_CHANGES + 1 if "diff" in arguments else -1
        return printed.read(most) if done.returncode == 0 or differs else None


def _processor():
    """Returns the name of the processor's model."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # Linux alone has this file
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
