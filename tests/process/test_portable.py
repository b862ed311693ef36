"""--portable has an effect or is refused, and refuses what computes other bits on another processor."""

import json
import os
import pathlib
import subprocess
import sys

from mnist import Error, machine
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
import pytest
import tensorflow as tf
from conftest import make_linear, run_here


def start(*arguments, check=True):
    """Runs a command in a process of its own, because TensorFlow must not have chosen its threads before."""
    environment = {name: value for name, value in os.environ.items() if name not in machine.PORTABLE}
    return subprocess.run([sys.executable, *arguments], env=environment, check=check, capture_output=True, text=True)


SCRIPT = """
import tensorflow as tf  # before mnist, so that it has chosen its kernels
from mnist import train
from mnist.step import TrainStep
import keras, posix

def make_model():
    inner = [keras.layers.Conv2D(4, 5, strides=3), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner])

class Step(TrainStep):
    def extra_metrics(self, images, labels, logits):
        return {"started_with_avx2": float(posix.environ.get(b"ONEDNN_MAX_CPU_ISA") == b"AVX2")}

train.launch(Step, model=make_model)
"""


def test_a_command_restarts_itself_and_a_resume_keeps_the_flag(tmp_path):
    script, run = tmp_path / "idea.py", tmp_path / "run"
    script.write_text(SCRIPT)
    arguments = [str(script), f"--workdir={run}", "--dataset=digits"]
    start(*arguments, "--max_steps=2", "--portable")
    results = json.loads((run / "results.json").read_text())
    assert (results["portable"], results["test_started_with_avx2"]) == (True, 1)
    assert "--intra_op_threads=1\n" in (run / "flags.txt").read_text()
    start(*arguments, "--max_steps=3")  # takes the flag from flags.txt
    assert json.loads((run / "results.json").read_text())["test_started_with_avx2"] == 1
    refused = start(*arguments, "--max_steps=4", "--noportable", check=False)
    assert "--portable was true, is false" in refused.stderr
    assert "start it with env" in run_here("mnist.evaluate", f"--workdir={run}", "--portable").stderr


def test_a_program_that_cannot_be_restarted_is_told(tmp_path, digits, command):
    code, _, _ = command("--portable", "--dataset=digits", f"--workdir={tmp_path / 'run'}")
    assert "cannot start this program again: start it with env" in code
    with pytest.raises(Error, match="has no effect, because this process was not started with env TF_ENABLE_ONEDNN"):
        train_and_evaluate(TrainStep(make_linear(), keras.optimizers.SGD()), digits, tmp_path / "run", portable=True)
    assert not (tmp_path / "run").exists()


class Normed(TrainStep):
    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        return [gradient / tf.sqrt(tf.reduce_mean(gradient**2) + 1e-6) for gradient in gradients], scalars


REFUSED = [
    (TrainStep, [keras.layers.BatchNormalization], {}, "SGD", "Rsqrt"),
    (TrainStep, [lambda: keras.layers.Dense(4, activation="gelu")], {}, "SGD", "the operation Erf"),
    (TrainStep, [lambda: keras.layers.Dense(4, dtype="mixed_bfloat16")], {}, "SGD", "16 bits"),
    (Normed, [], {}, "SGD", "Rsqrt"),  # Grappler makes it of the division
    (TrainStep, [], {}, "RMSprop", "Rsqrt"),
    (TrainStep, [], {"jit_compile": True}, "SGD", "XLA"),
]


@pytest.mark.parametrize(("cls", "inner", "options", "optimizer", "found"), REFUSED)
def test_operations_with_other_bits_are_refused(tmp_path, digits, monkeypatch, cls, inner, options, optimizer, found):
    monkeypatch.setattr("mnist.loop.check_portable", lambda: None)  # this process has another environment
    step = cls(make_linear(*(make() for make in inner)), getattr(keras.optimizers, optimizer)(0.1))
    with pytest.raises(Error, match=f"portable: .*{found}"):
        train_and_evaluate(step, digits, tmp_path / "run", portable=True, **options)
    assert not pathlib.Path(tmp_path, "run", "metrics.jsonl").exists()
