"""The start and the end of a command: a quiet start, short errors, the exit code."""

import subprocess
import sys

import pytest


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


def shell(main, tail=""):
    """Runs a program with a function `main` as a command, followed by `tail`, in a shell that prints the exit code."""
    code = f"import sys\nfrom mnist import Error\nfrom mnist.cli import run\n{main}\nrun(main)\n"
    command = f'"$0" -c "$1" {tail}; echo "exit ${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", command, sys.executable, code], capture_output=True, text=True)


GONE = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); run(print)"


@pytest.mark.parametrize(
    ("body", "tail", "code", "message"),
    [
        ("import tensorflow, keras; print('done')", "", 0, ""),
        ("from absl import logging; logging.info('of a library')", "", 0, ""),
        ("raise Error('found this, expected that')", "", 1, "error: found this, expected that\n"),
        ("[print('x' * 99) for _ in range(9999)]", "| head -1", 141, ""),
        ("pass", "--helpfull | true", 141, ""),
        ("import signal; signal.raise_signal(signal.SIGINT)", "", 130, "interrupted\n"),
        (GONE, "", 1, "error: the current folder no longer exists: change to another.\n"),
    ],
)
def test_a_command_prints_its_error_and_nothing_else(body, tail, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = shell(f"def main():\n    {body}", tail)
    assert done.stdout.endswith(f"exit {code}\n")
    assert done.stderr == message


def test_a_bug_keeps_its_traceback():
    done = shell("def main():\n    {}['key']")
    assert "exit 1" in done.stdout
    assert "Traceback" in done.stderr
    assert "KeyError: 'key'" in done.stderr


def test_the_package_lists_its_commands_and_what_needs_no_tensorflow_imports_none():
    done = python(
        "import runpy, sys, mnist.data, mnist.settings, mnist.metrics\n"
        "runpy.run_module('mnist', run_name='__main__'); sys.exit('tensorflow' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    for name in ("train", "evaluate", "predict", "export", "sweep", "compare", "launch_workers"):
        assert f"python -m mnist.{name} " in done.stdout
    assert "  hard_examples    Hard examples first" in done.stdout


def test_a_missing_workdir_is_an_error(start):
    done = start("mnist.evaluate")
    assert done.returncode == 1
    assert done.stderr == "error: --workdir is missing: name the folder of a run, as in --workdir=runs/first.\n"


def test_no_module_imports_what_windows_lacks_or_matplotlib_which_only_curves_need():
    code = """
import sys
sys.modules |= dict.fromkeys(["fcntl", "resource", "termios", "pwd", "grp", "matplotlib"])
import pkgutil, mnist
for module in pkgutil.walk_packages(mnist.__path__, "mnist."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


FULL = "error: cannot write the output: No space left on device.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = shell("def main():\n    print('answers')", "> /dev/full")
    assert (done.stdout, done.stderr) == ("exit 1\n", FULL)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "mnist"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, FULL)
