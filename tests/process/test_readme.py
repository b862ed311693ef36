"""The README's commands and code blocks, as a reader pastes them, and the recipes in scripts/recipes."""

import inspect
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from mnist import checkpoint, data, finished
from mnist.loop import train_and_evaluate
from mnist.machine import num_threads
from mnist.model import CNN
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from conftest import nightly_but, read_events
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    command
    for block in re.findall(r"```bash\n(.*?)```|\| `(python .*?)`", README, re.DOTALL)
    for command in "".join(block).strip().splitlines()
]
SHORT = ["--dataset=digits", "--max_steps=3"]  # in place of MNIST
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.flags"))


def test_the_readme_is_short_and_names_only_what_exists():
    assert len(README.splitlines()) <= 200
    others = [(ROOT / folder / "README.md").read_text() for folder in ("scripts", "mnist/research")]
    text = "\n".join([README, *others])
    for path in re.findall(r"\b(?:scripts|mnist|tests)/[\w/]+(?:\.\w+|/)", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (mnist[\w.]*\w)", text.replace("mnist.research.NAME", "mnist.train")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    research = {path.stem for path in (ROOT / "mnist" / "research").glob("[!_]*.py")}
    assert research - {"record", "speedrun"} <= set(re.findall(r"\| `(\w+)`", others[1]))
    assert f"[{len(research)} with results]" in README


def test_the_readme_has_the_signatures_of_the_methods():
    for name, signature in re.findall(r"^\| `(\w+)(\(self.*?\))`", README, re.MULTILINE):
        assert str(inspect.signature(getattr(TrainStep, name))) == signature
    assert set(EXAMPLES) == {"written_out", "notebook", "noisy"}
    assert len(COMMANDS) == 26


@pytest.fixture(scope="module")
def folder(start, tmp_path_factory):
    """The folder of a reader, with the code blocks in files and a first run."""
    folder = tmp_path_factory.mktemp("reader")
    for name, text in EXAMPLES.items():
        (folder / f"{name}.py").write_text(text)
    done = start("mnist.train", "--workdir=runs/first", "--dataset=digits", "--epochs=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_loop_written_out_gives_the_bits_of_this_loop(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(EXAMPLES["written_out"], folder / "written_out.py", "exec"), names)
    keras.utils.set_random_seed(0)
    step = TrainStep(CNN(), keras.optimizers.Adam(1e-3), seed=0)
    train_and_evaluate(step, data.load("digits"), "runs/same", epochs=2)
    for ours, theirs in zip(step.model.get_weights(), names["model"].get_weights(), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_the_example_trains_and_resumes_exactly(folder, start):
    for run, steps in (("straight", 30), ("stopped", 13), ("stopped", 30)):
        arguments = (f"--workdir=runs/{run}", "--dataset=digits", f"--max_steps={steps}", "--noise=0.2")
        done = start(folder / "noisy.py", *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    one, other = (read_events(folder / "runs" / run / "train") for run in ("straight", "stopped"))
    assert one["batch/gradient_norm"] == other["batch/gradient_norm"]
    assert one["epoch/loss"][-1][1] < one["epoch/loss"][0][1]


def test_the_notebook_example_predicts_the_first_five_test_images(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(EXAMPLES["notebook"], "notebook.py", "exec"), names)
    assert names["results"]["test_accuracy"] > 0.6
    assert finished.load("runs/notebook").step == 48
    last = capsys.readouterr().out.splitlines()[-1]
    labels, predictions = (np.fromstring(part, int, sep=" ") for part in re.findall(r"\[(.*?)\]", last))
    assert np.array_equal(labels, data.load("digits").test.labels[:5])
    assert len(predictions) == 5


def test_the_commands_run_as_they_stand(folder, start):
    """Runs them on digits and shorter. Other tests cover scripts and recipes, and nightly.sh runs all as printed."""
    Image.fromarray(data.load("digits").test.images[0, :, :, 0]).save(folder / "digit.png")
    for command in COMMANDS:
        if "scripts/" in command and "--workdir=runs/record" not in command:
            continue
        program, *arguments = shlex.split(command, comments=True)[2:]
        arguments = [re.sub("^--flagfile=", f"--flagfile={ROOT}/", argument) for argument in arguments]
        if "--seeds=5" in arguments:
            arguments = [argument.replace("=5", "=2") for argument in arguments] + ["--jobs=2", "--", *SHORT]
        elif program.startswith("mnist.research") or program == "mnist.train" or "mnist.train" in arguments:
            arguments = [argument.replace("=101:120", "=2:3") for argument in arguments] + SHORT
        if program.startswith("mnist.research"):
            arguments += [f"--intra_op_threads={num_threads()}"]  # TensorFlow has started with these threads
        if "--slices=4" in arguments:  # devices are set before TensorFlow starts
            arguments = [sys.executable if argument == "python" else argument for argument in arguments]
            done = subprocess.run(
                [sys.executable, "-m", program, *arguments], cwd=folder, capture_output=True, text=True
            )
        else:
            done = start(program, *arguments, cwd=folder)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stdout
    assert (folder / "runs" / "first" / "saved_model" / "saved_model.pb").exists()
    assert (folder / "runs" / "first" / "plots" / "curves.png").exists()


@pytest.mark.parametrize("name", nightly_but(["1_epoch.flags", "speedrun.flags"], [path.name for path in RECIPES]))
def test_a_recipe_runs_by_the_command_in_its_first_line(name, start, tmp_path):
    path = ROOT / "scripts" / "recipes" / name
    command = re.fullmatch(r"# python -m (mnist[.\w]+ --flagfile=scripts/recipes/(.*))", path.open().readline()[:-1])
    assert command[2] == path.name
    arguments = [*command[1].split(), "--dataset=digits", "--epochs=20", "--dry_run", f"--workdir={tmp_path}"]
    arguments += [f"--intra_op_threads={num_threads()}"]  # TensorFlow has started with these threads
    done = start(*arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["steps"] in (6, 10)  # 1,500 images, at most 10 steps
    fingerprint = checkpoint.load_newest(str(tmp_path / "checkpoints"))[1]["fingerprint"]
    flags = {name: float(n) for name, n in re.findall(r"^--(\w+)=([\d.]+)$", path.read_text(), re.MULTILINE)}
    reached = flags.keys() & fingerprint.keys()  # the others belong to the optimizer, or may change
    assert {name: fingerprint[name] for name in reached} == {name: flags[name] for name in reached}
    assert "smoothing" in reached or path.stem == "variants"


# A stand-in for Python. As `-m venv` it copies itself, and as pip it prints what it has of the environment.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo 3.11 ;;
  "-m venv "*) [ -z "${INTERRUPT-}" ] || kill -INT 0; mkdir "$3/bin"; cp "$0" "$3/bin/python" ;;
  *" install "*) mkdir -p "${0%/bin*}/lib/python3.11/site-packages/tensorflow"; echo "pip $PIP_USER ${PIP_TARGET-}" ;;
  "-m mnist.train"*) echo "$*" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """Returns a function that runs a command in a copy of the scripts, with a stand-in for Python."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.cfg", "pyproject.toml", *(f"scripts/{name}.sh" for name in ("setup", "train", "test"))):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "fake").write_text(FAKE_PYTHON)
    (tmp_path / "fake").chmod(0o755)

    def run(*command, **environment):
        command = [shutil.which("env"), "--default-signal=INT", *command]
        options = {"cwd": tmp_path, "env": os.environ | {"PYTHON": f"{tmp_path}/fake"} | environment}
        return subprocess.run(command, capture_output=True, text=True, start_new_session=True, **options)

    return run


def make_old(venv):
    (venv / "installed").unlink()  # so that it is not of these scripts
    (venv / "bin/python").write_text("#!/bin/sh\necho 3.9")


@pytest.mark.parametrize(
    ("change", "command", "lines"),
    [
        (lambda venv: None, ["sh", "scripts/test.sh"], [r"installing .* what is missing for \[test\]$"]),
        (lambda venv: None, ["sh", "scripts/train.sh"], []),
        (lambda venv: (venv / "bin/python").unlink(), ["bash", "scripts/train.sh"], ["removing .* gone$", "install"]),
        (make_old, ["scripts/test.sh"], ["moving .* its Python is 3.9$", "installing .* 700 MB"]),
    ],
)
def test_setup_installs_what_is_missing_in_any_surroundings(clone, tmp_path, change, command, lines):
    first = clone("sh", "scripts/train.sh", "--epochs=1", CDPATH="/:.", PIP_USER="1", PIP_TARGET="/elsewhere")
    assert (first.returncode, first.stdout) == (0, "pip 0 \n-m mnist.train --epochs=1\n")
    assert re.fullmatch("installing .* 700 MB to download\n", first.stderr)
    change(tmp_path / ".venv")
    done = clone(*command)
    assert done.returncode == 0
    for line, pattern in zip(done.stderr.splitlines(), lines, strict=True):
        assert re.match(pattern, line)
    assert len(list(tmp_path.glob(".venv-*"))) == (change is make_old)
    assert clone(*command).stderr == ""


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_ctrl_c_during_the_set_up_exits_quietly(clone, shell):
    done = clone(shell, "scripts/train.sh", INTERRUPT="1")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("", "Python 3.10 to 3.13 is missing"),
        ("bare", "venv is missing"),
        ("false", "PYTHON=false is not a Python 3.10 to 3.13"),
        ("gone", "PYTHON=gone is not a Python"),
    ],
)
def test_setup_says_in_one_line_what_is_missing(clone, tmp_path, python, message):
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "cat", "cksum", "sh", "false"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    (tmp_path / "bin" / "bare").write_text("#!/bin/sh\ncase $2 in *version*) echo 3.11 ;; *) exit 1 ;; esac\n")
    (tmp_path / "bin" / "bare").chmod(0o755)
    done = clone("sh", "scripts/setup.sh", PATH=f"{tmp_path}/bin", PYTHON=python)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
