"""Another training program that this process starts: its command, its flags, its error."""

import os
import re
import subprocess
import sys

from mnist import Error
from mnist.settings import local_path


def find_program(module):
    """Returns the arguments of Python that run a module (`-m`, name) or a file (path). Raises: `mnist.Error`.

    Does not import the module, because it may define flags with the names of the caller's flags.
    """
    if module.endswith(".py") or os.path.dirname(module):
        path = os.path.abspath(local_path(module))
        if not os.path.isfile(path):
            raise Error(f"--module={module}: there is no file {path}.")
        return [path]
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        raise Error(f"--module={module!r}: expected a module, as mnist.train, or a file, as my_idea.py.")
    return ["-m", module]


def check_arguments(arguments, own):
    """Raises `mnist.Error` for an argument that is not a flag or is in `own`, the flags that the caller sets itself."""
    for argument in arguments:
        flag = re.fullmatch(r"--?(\w+)(=.*)?", argument)
        if not flag or {flag[1], flag[1].removeprefix("no")} & {*own}:
            raise Error(f"{argument!r} {'is set by this command' if flag else 'is not of the form --name=value'}.")


def check_flags(program, flags):
    """Raises `mnist.Error` if a program cannot be imported or rejects one of the flags. Trains nothing."""
    command = [sys.executable, *program, *flags, "--only_check_args"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = last_words(done.stderr).removeprefix("error: ").removeprefix(f"{sys.executable}: ")
        raise Error(f"--module={program[-1]} does not start with these flags: {reason}")


def last_words(text):
    """Returns the last message in the output of a program: its last line, or an error of one or two lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-2:] or ["it printed nothing"]
    return " ".join(lines) if lines[0].startswith("error: ") else lines[-1]
