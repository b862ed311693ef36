"""The README's commands and examples, as a reader would paste them."""

import pathlib
import re
import runpy
import subprocess
import sys

from mnist import checkpoint, data, train
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep

import keras
import pytest
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", README, re.DOTALL))


def test_every_file_and_module_that_is_named_exists():
    for path in re.findall(r"\b(?:scripts|mnist|tests)/[\w/]+\.\w+", README):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (mnist[\w.]*\w)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_example_step_runs_when_pasted(tmp_path):
    example = EXAMPLES["my_idea"]
    assert len(example.splitlines()) <= 15
    (tmp_path / "my_idea.py").write_text(example)
    command = [sys.executable, "my_idea.py", "--dataset=digits", "--max_steps=5", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "# python my_idea.py" in (tmp_path / "run" / "flags.txt").read_text()
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "train").iterdir())
    assert b"batch_gradient_norm" in events


@pytest.fixture
def paste(tmp_path, monkeypatch):
    """Runs an example of the README as `python NAME.py`, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--dataset=digits", *arguments])
        with flagsaver.flagsaver():
            train.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as exit:
                runpy.run_path(f"{name}.py", run_name="__main__")
        assert exit.value.code == 0

    yield run
    train.FLAGS.mark_as_parsed()


def test_examples_are_complete():
    assert EXAMPLES.keys() == {"my_idea", "momentum", "other_model", "two_optimizers", "distill", "notebook"}


@pytest.mark.parametrize("name", ["momentum", "other_model", "two_optimizers", "distill"])
def test_an_example_trains_and_resumes_exactly(name, paste, tmp_path):
    if name == "distill":
        train_and_evaluate(TrainStep(CNN(), keras.optimizers.Adam()), data.load("digits"), "runs/first", epochs=1)
    paste(name, "--workdir=straight", "--max_steps=30", "--noresume")
    paste(name, "--workdir=stopped", "--max_steps=13")
    paste(name, "--workdir=stopped", "--max_steps=30")
    straight, resumed = (checkpoint.load_newest(f"{w}/checkpoints")[0] for w in ("straight", "stopped"))
    assert straight.keys() == resumed.keys()
    assert all(straight[key].tobytes() == resumed[key].tobytes() for key in straight)
    parts = {key.partition("/")[0] for key in straight} - {"eval_model"}
    own = {"two_optimizers": {"dense_optimizer"}, "distill": {"teacher"}}
    assert parts == {"model", "optimizer"} | own.get(name, set())
    losses = [entry["train_loss"] for entry in checkpoint.load_newest("straight/checkpoints")[1]["history"]]
    assert losses[-1] < losses[0]


def test_the_notebook_example_runs_without_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES["notebook"], "notebook.py", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0.6


def test_a_model_of_ones_own_is_found_by_other_commands(tmp_path):
    """A part of it is a class in the user's file, not registered, which brings the flags of mnist.train along."""
    (tmp_path / "my_model.py").write_text(OWN_MODEL)
    arguments = ["--dataset=digits", "--max_steps=3", "--workdir=run"]
    subprocess.run([sys.executable, "my_model.py", *arguments], cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "-m", "mnist.evaluate", "--workdir=run", "--eval_batch_size=100"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("step 3, 297 test images"), done.stderr
    command[-2:] = [f"--workdir={tmp_path}/run"]
    elsewhere = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert elsewhere.returncode == 1
    assert elsewhere.stderr.startswith("error: the model's class is in my_model, which cannot be imported")
    assert len(elsewhere.stderr.splitlines()) == 1


OWN_MODEL = """
import keras

from mnist import train
from mnist.step import TrainStep


class Linear(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten, self.logits = keras.layers.Flatten(), keras.layers.Dense(10)

    def build(self, input_shape):
        self.logits.build([None, 784])

    def call(self, images, training=False):
        return self.logits(self.flatten(images))


def make_step(model, optimizer, **kwargs):
    return TrainStep(keras.Sequential([keras.Input([28, 28, 1]), Linear()]), optimizer, **kwargs)


if __name__ == "__main__":
    train.launch(make_step)
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
