"""The pictures of a run: the order of mistakes, the curves, and the losses that the curves draw."""

from mnist import data, finished
from mnist.data import Examples
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep
from mnist.summaries import Summaries, pictures

import keras
import numpy as np
import pytest
import tensorflow as tf


def make_history(num_entries):
    names = [f"{part}_{metric}" for part in ("train", "validation") for metric in ("loss", "accuracy")]
    first = {"step": 0, "validation_loss": 2.3, "validation_accuracy": 0.1}  # before any training
    return [first, *({"step": 10 * i} | dict.fromkeys(names, 1 / (i + 1)) for i in range(1, num_entries))]


def test_the_mistakes_with_the_largest_loss_come_first():
    images = np.repeat(np.arange(40, 140, dtype=np.uint8), 28 * 28).reshape(100, 28, 28, 1)  # each has its own grey
    labels = np.zeros(100, int)
    logits = np.zeros([100, 10])
    logits[:, 0] = 1  # right, but with a loss
    logits[np.arange(60), 1] = 2 + np.arange(60) / 10  # wrong, each with a larger loss than the one before
    picture = np.asarray(pictures.draw_mistakes(Examples(images, labels), logits))
    shown = [picture[68 + 84 * (i // 5), 36 + 70 * (i % 5)].tolist() for i in range(25)]
    assert shown == [[40 + i] * 3 for i in range(59, 34, -1)]


@pytest.mark.parametrize("num_entries", [0, 1, 9])
@pytest.mark.parametrize("steps", [None, 0, 5000])
def test_curves_of_one_run_and_of_several(num_entries, steps):
    history = make_history(num_entries)[:num_entries]
    losses = None if steps is None else (np.arange(1, steps + 1), np.linspace(2.3, 0.1, steps, dtype=np.float32))
    several = dict.fromkeys(("a", "train", "_b$x^$", "い" * 100), (history, losses))
    for runs in (history, several, {"a": history, "b": history}):
        picture = pictures.draw_curves(runs)
        low, high = picture.convert("L").getextrema()
        assert low < 100 < high
        assert picture.size >= (1000, 400)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run in a folder with an odd name, loaded by another command."""
    keras.utils.set_random_seed(0)
    workdir = str(tmp_path_factory.mktemp("runs") / "a,b [c]*")
    train_and_evaluate(TrainStep(CNN(), keras.optimizers.Adam(), seed=0), data.load("digits"), workdir, max_steps=3)
    return finished.load(workdir)


def write_losses(folder, start, losses):
    """Writes the event files of a process that resumes a run from step `start`."""
    summaries = Summaries(str(folder))
    summaries.begin(start, {}, str(folder))
    summaries.write_steps(start + 1, {"batch/loss": tf.constant(losses, tf.float32)})
    summaries.close()


def test_the_losses_by_step_are_those_after_the_last_resume(run, tmp_path):
    run.workdir = str(tmp_path / "a,b [c]*")
    losses = np.linspace(2, 1, 12_000, dtype=np.float32)  # TensorBoard's reader keeps fewer by default
    write_losses(run.workdir, 0, losses)
    write_losses(run.workdir, 11_990, [5, 6, 7])
    steps, values = run.batch_losses()
    np.testing.assert_array_equal(steps, np.arange(1, 11_994))
    np.testing.assert_array_equal(values, [*losses[:11_990], 5, 6, 7])
