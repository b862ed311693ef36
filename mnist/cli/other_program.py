"""Another training program that this process starts: its command, its flags, its error."""

import glob
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import mnist
from mnist import Error
from mnist.cli.command import VALID, close_names, did_you_mean
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
    *packages, name = module.split(".")
    folder = os.path.join(os.path.dirname(mnist.__file__), *packages[1:])
    if packages[:1] == ["mnist"] and not os.path.exists(os.path.join(folder, f"{name}.py")):
        ideas = glob.glob(os.path.join(os.path.dirname(mnist.__file__), "research", "[!_]*.py"))
        close = [f"mnist.research.{idea}" for idea in close_names(name, [pathlib.Path(idea).stem for idea in ideas])]
        raise Error(f"--module={module}: there is no such module{did_you_mean(close)}")
    return ["-m", module]


def check_arguments(arguments, own):
    """Raises `mnist.Error` for an argument that is not a flag or is in `own`, the flags that the caller sets itself."""
    for argument in arguments:
        flag = re.fullmatch(r"--?(\w+)(=.*)?", argument)
        if not flag or {flag[1], flag[1].removeprefix("no")} & {*own}:
            raise Error(f"{argument!r} {'is set by this command' if flag else 'is not of the form --name=value'}.")


def check_flags(program, arguments, lines):
    """Raises `mnist.Error` if a program rejects a flag, or does not call `launch`. Trains nothing.

    Args:
      arguments: the flags that a person typed.
      lines: further flags, of which one may have several values.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "check.flags")
        path.write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, *program, *arguments, f"--flagfile={path}", "--only_check_args"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = last_words(done.stderr).removeprefix("error: ").removeprefix(f"{sys.executable}: ")
        raise Error(f"--module={program[-1]} does not start with these flags: {reason}")
    if VALID not in done.stdout:
        raise Error(f"--module={program[-1]} does not call mnist.train.launch: {last_words(done.stdout + done.stderr)}")


def last_words(text):
    """Returns the last message in the output of a program: its last line, or an error of one or two lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-2:] or ["it printed nothing"]
    return " ".join(lines) if lines[0].startswith("error: ") else lines[-1]
