"""What every command shares: a quiet start, errors in their own words, the exit code."""

import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).parents[2]


def shell(main, tail=""):
    code = f"import sys\nfrom mnist import Error\nfrom mnist.cli import run\n{main}\nrun(main)\n"
    command = f'"$0" -c "$1" {tail}; echo "exit ${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", command, sys.executable, code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "tail", "code", "said"),
    [
        ("import tensorflow, keras; print('done')", "", 0, ""),
        ("sys.exit('tensorflow' in sys.modules)", "", 0, ""),
        ("raise Error('found this, expected that')", "", 1, "error: found this, expected that\n"),
        ("pass", "stray", 1, "error: unexpected argument: 'stray' (flags are written --name=value).\n"),
        ("pass", "--nonsense", 1, "error: there is no flag --nonsense. --help lists all.\n"),
        ("[print('x' * 99) for _ in range(9999)]", "| head -1", 141, ""),
        ("pass", "--helpfull | true", 141, ""),
    ],
)
def test_a_command_says_what_it_has_to_say_and_no_more(body, tail, code, said):
    done = shell(f"def main():\n    {body}", tail)
    assert done.stdout.endswith(f"exit {code}\n")
    assert done.stderr == said


def test_a_bug_keeps_its_traceback():
    done = shell("def main():\n    {}['key']")
    assert "exit 1" in done.stdout
    assert "Traceback" in done.stderr
    assert "KeyError: 'key'" in done.stderr


def test_the_package_lists_its_commands_without_tensorflow():
    code = "import runpy, sys; runpy.run_module('mnist', run_name='__main__'); sys.exit('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("train", "evaluate", "predict", "export", "sweep", "compare", "launch_workers"):
        assert f"python -m mnist.{name} " in done.stdout
    assert "  hard_examples    Hard examples first" in done.stdout


@pytest.mark.parametrize("command", ["evaluate", "predict image.png", "export"])
def test_a_missing_workdir_is_said_in_words(command, start, tmp_path):
    ImageDraw.Draw(image := Image.new("L", (28, 28))).line((14, 4, 14, 24), 255, 3)
    image.save(tmp_path / "image.png")
    name, *arguments = command.split()
    done = start(f"mnist.{name}", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: --workdir is missing: name the folder of a run, as in --workdir=runs/first.\n"


def test_help_tells_the_flags_of_any_command(start):
    done = start("mnist.evaluate", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Evaluates a run")
    assert "  --eval_batch_size=500\n      Images at a time" in done.stdout
    assert "--logtostderr" not in done.stdout
    assert "--[no]logtostderr" in start("mnist.evaluate", "--helpfull").stdout


def test_no_module_asks_for_what_another_system_lacks():
    """As on native Windows, where these do not exist."""
    code = """
import sys
sys.modules |= dict.fromkeys(["fcntl", "resource", "termios", "pwd", "grp"])
import pkgutil, mnist
for module in pkgutil.walk_packages(mnist.__path__, "mnist."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_said(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = shell("def main():\n    print('answers')", "> /dev/full")
    assert (done.stdout, done.stderr) == ("exit 1\n", "error: cannot write the output: No space left on device.\n")


TENSORFLOW = """
import os, types
os.write(2, b"oneDNN custom operations are on\\n")
config = types.SimpleNamespace(list_physical_devices=lambda kind: [])
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_takes_no_other_files_place(closed, tmp_path, monkeypatch):
    """With all closed, TensorFlow itself is imported; else what takes its seconds away and says as much."""
    if closed.count("&") < 3:
        (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    body = "\n    ".join(
        [
            "import tensorflow",
            f"with open({str(tmp_path / 'file')!r}, 'w') as file:",
            "    assert file.fileno() > 2",
            "    print('to nobody')",
            "    print('to nobody', file=sys.stderr)",
            "    file.write(sys.stdin.read() + 'whole')",
        ]
    )
    done = shell(f"def main():\n    {body}", f"{closed}" if "<" in closed else f"< /dev/null {closed}")
    assert done.stdout.endswith("exit 0\n")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_folder_that_is_gone_is_said(tmp_path):
    done = shell(
        f"import os, shutil\ndef main():\n    pass\nos.chdir({str(tmp_path)!r})\nshutil.rmtree({str(tmp_path)!r})"
    )
    assert done.stderr == "error: the current folder is no longer there: go to another.\n"


@pytest.mark.parametrize("keras_json", [None, '{"backend": "jax", "image_data_format": "channels_first"}'])
def test_another_backend_is_passed_over_and_said(keras_json, tmp_path, monkeypatch):
    if keras_json:
        (tmp_path / "keras.json").write_text(keras_json)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        said = "channels_first of keras.json is passed over"
    else:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        said = "KERAS_BACKEND=jax is passed over"
    done = shell(
        "from mnist.model import CNN\nimport keras\n"
        "def main():\n    print(CNN().count_params(), keras.config.backend())"
    )
    assert done.stdout == "93322 tensorflow\nexit 0\n"
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_narrow_terminal_gets_help(start, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    done = start("mnist.train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--batch_size" in done.stdout


def test_ctrl_c_ends_a_command_without_a_traceback():
    code = "import signal\nfrom mnist.cli import run\nrun(lambda: signal.raise_signal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr.strip()) == (130, b"interrupted")


def test_the_list_of_commands_says_that_it_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "mnist"], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write the output: No space left on device.\n")
