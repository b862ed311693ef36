"""What every command shares: a quiet start, errors in their own words, the exit code."""

import subprocess
import sys

import pytest


def start(main, tail=""):
    code = f"from mnist import Error, run\n{main}\nrun(main)\n"
    command = f'"$0" -c "$1" {tail}; echo "exit ${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", command, sys.executable, code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "tail", "code", "said"),
    [
        ("print('done')", "", 0, ""),
        ("raise Error('found this, expected that')", "", 1, "error: found this, expected that\n"),
        ("[print('x' * 99) for _ in range(9999)]", "| head -1", 141, ""),
    ],
)
def test_a_command_says_what_it_has_to_say_and_no_more(body, tail, code, said):
    done = start(f"def main():\n    {body}", tail)
    assert done.stdout.endswith(f"exit {code}\n")
    assert done.stderr == said


def test_a_bug_keeps_its_traceback():
    done = start("def main():\n    {}['key']")
    assert "exit 1" in done.stdout
    assert "Traceback" in done.stderr
    assert "KeyError: 'key'" in done.stderr
