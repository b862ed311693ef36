"""The README's commands and examples, as a reader would paste them."""

import pathlib
import re
import shlex
import subprocess

from mnist import checkpoint, data, finished, predict

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESEARCH = (ROOT / "mnist" / "research" / "README.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", README + RESEARCH, re.DOTALL))
COMMANDS = [
    command
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) + re.findall(r"\| `(python .*?)`", README)
    for command in block.strip().splitlines()
]


def test_the_readme_is_short_and_names_only_what_exists():
    assert len(README.splitlines()) <= 220
    others = [(ROOT / folder / "README.md").read_text() for folder in ("scripts", "mnist/research")]
    text = "\n".join([README, *others])
    for path in re.findall(r"\b(?:scripts|mnist|tests)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (mnist[\w.]*\w)", text.replace("mnist.research.NAME", "mnist.train")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    research = {path.stem for path in (ROOT / "mnist" / "research").glob("[!_]*.py")}
    assert research - {"record", "speedrun"} <= set(re.findall(r"\| `(\w+)`", others[1]))
    assert set(re.findall(r"`(\w+)`", README.partition("files to start from")[2].partition("\n\n")[0])) == research


@pytest.fixture(scope="module")
def folder(start, tmp_path_factory):
    """A reader's folder: the examples pasted into files, and a first run."""
    folder = tmp_path_factory.mktemp("reader")
    for name, text in EXAMPLES.items():
        (folder / f"{name}.py").write_text(text)
    done = start("mnist.train", "--workdir=runs/first", "--dataset=digits", "--epochs=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_examples_are_complete():
    assert EXAMPLES.keys() == {"noisy", "other_model", "notebook"}
    assert len(COMMANDS) == 12


@pytest.mark.parametrize("name", ["noisy", "other_model"])
def test_an_example_trains_and_resumes_exactly(name, folder, start):
    def paste(workdir, *arguments):
        done = start(folder / f"{name}.py", f"--workdir=runs/{workdir}", "--dataset=digits", *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        return folder / "runs" / workdir

    straight = paste(f"{name}-straight", "--max_steps=30")
    paste(f"{name}-stopped", "--max_steps=13")
    stopped = paste(f"{name}-stopped", "--max_steps=30")
    (one, state), (other, _) = (checkpoint.load_newest(str(w / "checkpoints")) for w in (straight, stopped))
    assert one.keys() == other.keys()
    assert all(one[key].tobytes() == other[key].tobytes() for key in one)
    parts = {key.partition("/")[0] for key in one} - {"eval_model", "run"}
    assert parts == {"model", "optimizer"}
    assert state["history"][-1]["train_loss"] < state["history"][1]["train_loss"]
    if name == "noisy":
        assert "# python " in (straight / "flags.txt").read_text()
        assert "--noise=0.1" in (straight / "flags.txt").read_text()
        assert b"batch/gradient_norm" in b"".join(path.read_bytes() for path in (straight / "train").iterdir())


def test_the_notebook_example_runs_without_flags(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(EXAMPLES["notebook"], "notebook.py", "exec"), names)
    assert names["results"]["test_accuracy"] > 0.6
    assert finished.load("runs/notebook").step == 48


def test_the_commands_run_as_they_stand(folder, start, python):
    """On digits, and shorter; the two scripts that set everything up are tested apart."""
    digit = data.load("digits").test.images[0, :, :, 0]
    Image.fromarray(digit).save(folder / "digit.png")
    short = ["--dataset=digits", "--max_steps=3"]
    for command in [shlex.split(command, comments=True) for command in COMMANDS if "scripts/t" not in command]:
        program, *arguments = command[1:]
        if program == "-m":
            program, *arguments = arguments
        else:
            program = ROOT / program
        arguments = [re.sub("^--flagfile=", f"--flagfile={ROOT}/", argument) for argument in arguments]
        arguments = [python if argument == "python" else argument for argument in arguments]
        if program == "mnist.research.record" or "--slices=4" in arguments:
            arguments += short
        if "--seeds=5" in arguments:
            arguments = [argument.replace("=5", "=2") for argument in arguments] + ["--jobs=2", "--", *short]
        done = start(program, *arguments, cwd=folder)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stdout
    assert (folder / "runs" / "first" / "saved_model" / "saved_model.pb").exists()
    assert predict.read_image(folder / "digit.png").shape == (28, 28, 1)


def test_a_model_of_ones_own_is_found_by_other_commands(start, tmp_path):
    """A part of it is a class in the user's file, not registered, which defines a flag of its own."""
    (tmp_path / "my_model.py").write_text(OWN_MODEL)
    done = start(tmp_path / "my_model.py", "--dataset=digits", "--max_steps=3", "--workdir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start("mnist.evaluate", "--workdir=run", "--eval_batch_size=100", cwd=tmp_path)
    assert done.stdout.startswith("step 3, 297 test images"), done.stderr
    elsewhere = start("mnist.evaluate", f"--workdir={tmp_path}/run", cwd=ROOT)
    assert elsewhere.returncode == 1
    assert elsewhere.stderr.startswith("error: Linear is in my_model, which cannot be imported")
    assert len(elsewhere.stderr.splitlines()) == 1


OWN_MODEL = """
import keras
from absl import flags

from mnist import train

flags.DEFINE_integer("eval_batch_size" if __name__ != "__main__" else "units", 10, "Not that of mnist.evaluate.")


class Linear(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten, self.logits = keras.layers.Flatten(), keras.layers.Dense(10)

    def build(self, input_shape):
        self.logits.build([None, 784])

    def call(self, images, training=False):
        return self.logits(self.flatten(images))


if __name__ == "__main__":
    train.launch(model=lambda: keras.Sequential([keras.Input([28, 28, 1]), Linear()]))
"""


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="scripts/test.sh makes .venv; run it once")
def test_train_sh_runs_from_any_folder(tmp_path):
    command = [str(ROOT / "scripts" / "train.sh"), "--dataset=digits", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stderr  # the second time, nothing is installed
    assert len(list(tmp_path.glob("runs/*/results.json"))) == 1


def test_setup_says_in_one_line_what_is_missing(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, body in {"no-python": "exit 1", "no-venv": 'case "$2" in *venv*) exit 1;; esac; exit 0'}.items():
        (fake / name).write_text(f"#!/bin/sh\n{body}\n")
        (fake / name).chmod(0o755)
    script = ["bash", str(tmp_path / "scripts" / "setup.sh")]
    for tool in ("dirname", "cat", "cksum", "bash"):
        (fake / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    cases = [({"PATH": str(fake)}, "Python 3.10 to 3.13 is missing"), ({"PYTHON": "no-venv"}, "venv is missing")]
    for environment, message in cases:
        done = subprocess.run(script, env={"PATH": str(fake)} | environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
