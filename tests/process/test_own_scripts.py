"""Scripts as users write them: without a guard, with flags and tensors at module level, in threads."""

import concurrent.futures
import hashlib
import json
import os
import re

from mnist import train

import pytest
from PIL import Image

MODEL = """
from absl import flags
from mnist import train
import keras
from keras import layers
flags.DEFINE_float("degrees", 3.0, "A flag of this file.")
print("a word of this file")

class Mine(layers.Layer):
    def call(self, x):
        return x

def make_model():
    return keras.Sequential([keras.Input([28, 28, 1]), layers.Flatten(), Mine(), layers.Dense(10)])
"""
STUDENT = """
from mnist import finished, train
from mnist.step import TrainStep

class Student(TrainStep):
    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.teacher_model = finished.load("runs/teacher").model

if __name__ == "__main__":
    train.launch(Student)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, start):
    """A folder with a script without a guard, and a run of it that could continue."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "own_model.py").write_text(f"{MODEL}\ntrain.launch(model=make_model)\n")
    (folder / "student.py").write_text(STUDENT)
    flags = ("--dataset=digits", "--max_steps=3", "--checkpoint_every=1", "--workdir=runs/teacher")
    done = start("own_model.py", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def digest(folder):
    """Returns names, times and digests of all files in a folder. Omits hidden files, such as the lock."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [(str(p), p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate",), "step 3, 297 test images"),
        (("predict", "digit.png"), "digit.png: "),
        (("export", "--output=served"), "wrote served (step 3)"),
        (("export", "--output=served.keras", "--format=keras"), "custom_objects for own_model.Mine"),
    ],
)
def test_a_script_without_a_guard_is_evaluated_and_does_not_train(folder, start, arguments, message):
    image = Image.new("L", (28, 28))
    image.paste(255, (12, 6, 15, 22))
    image.save(folder / "digit.png")
    before = digest(folder / "runs")
    done = start(f"mnist.{arguments[0]}", "--workdir=runs/teacher", *arguments[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert "epoch" not in done.stdout
    assert digest(folder / "runs") == before
    assert os.listdir(folder / "runs") == ["teacher"]


def test_json_holds_nothing_that_a_users_file_prints_and_no_other_file_is_found(folder, start, tmp_path):
    done = start("mnist.evaluate", "--workdir=runs/teacher", "--json", cwd=folder)
    assert json.loads(done.stdout)["step"] == 3
    assert "a word of this file" in done.stderr
    done = start("mnist.evaluate", f"--workdir={folder}/runs/teacher", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Mine is in own_model, which cannot be imported")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("end", "match"),
    [
        ("from mnist.loop import train_and_evaluate as t\nt(None, None, 'runs/other')", "trains when it is"),
        ("import sys\nsys.exit('usage: own_model.py FILE')", r"ended the program .*\(usage: own_model.py FILE\)"),
    ],
)
def test_the_error_names_what_a_script_does_when_it_is_imported(folder, start, end, match, tmp_path):
    (tmp_path / "own_model.py").write_text(f"{MODEL}\n{end}\n")
    done = start("mnist.evaluate", f"--workdir={folder / 'runs' / 'teacher'}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert re.search(match, done.stderr)
    assert "__main__" in done.stderr


def test_flags_txt_holds_no_flag_of_another_script_whose_model_is_loaded(folder, start):
    done = start("student.py", "--dataset=digits", "--max_steps=2", "--workdir=runs/student", cwd=folder)
    assert done.returncode == 0, done.stderr
    flags_text = folder / "runs" / "student" / "flags.txt"
    assert "degrees" not in flags_text.read_text()
    again = start("student.py", f"--flagfile={flags_text}", "--workdir=runs/again", cwd=folder)
    assert again.returncode == 0, again.stderr
    for name in ("student", "again"):
        (folder / "runs" / name).rename(folder / name)


def test_launch_outside_of_the_main_thread_raises():
    with concurrent.futures.ThreadPoolExecutor() as threads:
        error = threads.submit(train.launch).exception()
    assert "in another, call train_and_evaluate()" in str(error)
