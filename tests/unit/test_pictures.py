"""The pictures of a run: their content, their width, their files, and the losses that the curves draw."""

from mnist import data, finished
from mnist.data import Examples
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep
from mnist.summaries import Summaries, canvas, pictures

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


def names_of(classes):
    return tuple(map(str, range(classes)))


def make_examples(num_examples, classes=10, mistakes=20):
    """Makes examples of random images, and logits that are wrong for the first of them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_examples, 28, 28, 1), np.uint8)
    labels = (np.arange(num_examples) % classes).astype(np.int32)
    logits = random.normal(0, 0.1, (num_examples, classes)).astype(np.float32)
    wrong = np.arange(num_examples) < mistakes
    logits[np.arange(num_examples), (labels + wrong) % classes] += 4
    return Examples(images, labels), logits


def make_history(num_entries):
    names = [f"{part}_{metric}" for part in ("train", "validation") for metric in ("loss", "accuracy")]
    first = {"step": 0, "validation_loss": 2.3, "validation_accuracy": 0.1}  # before any training
    return [first, *({"step": 10 * i} | dict.fromkeys(names, 1 / (i + 1)) for i in range(1, num_entries))]


def changed(one, other):
    """Returns the box of the pixels in which two pictures of one size differ: left, top, right, bottom."""
    assert one.size == other.size
    y, x = np.nonzero((np.asarray(one) != np.asarray(other)).any(axis=2))
    return x.min(), y.min(), x.max(), y.max()


def ink(picture, colour):
    """Returns a bool array `[height, width]`: the pixels of exactly this colour."""
    return (np.asarray(picture) == colour).all(axis=2)


# Confusion matrices


@pytest.mark.parametrize("classes", [2, 20, 256])
@pytest.mark.parametrize("is_beside", [False, True])
def test_a_single_mistake_is_visible_in_its_cell(classes, is_beside):
    """Draws it in the first column of the last row, or beside the diagonal."""
    matrix = 500 * np.eye(classes, dtype=int)
    before = pictures.draw_confusions(matrix, names_of(classes))
    column = classes - 2 if is_beside else 0
    matrix[classes - 1, column] = 1
    after = pictures.draw_confusions(matrix, names_of(classes))
    left, top, right, bottom = changed(before, after)
    margin, end = 30, before.width  # the margin is at most that wide
    cell = max(1, (end - margin) / classes)
    assert top >= end - 1.2 * cell - 3
    assert bottom < end
    if is_beside:
        assert end - 2.4 * cell - 3 <= left <= right < end
    else:
        assert right < margin + 1.2 * cell + 10
    difference = np.abs(np.asarray(before, int) - np.asarray(after)).max()
    assert difference > (30 if classes <= 20 else 100)  # a small cell needs a strong colour


# Mistakes


def test_the_mistakes_with_the_largest_loss_come_first():
    images = np.repeat(np.arange(40, 140, dtype=np.uint8), 28 * 28).reshape(100, 28, 28, 1)  # each has its own grey
    labels = np.zeros(100, int)
    logits = np.zeros([100, 10])
    logits[:, 0] = 1  # right, but with a loss
    logits[np.arange(60), 1] = 2 + np.arange(60) / 10  # wrong, each with a larger loss than the one before
    picture = np.asarray(pictures.draw_mistakes(Examples(images, labels), logits))
    shown = [picture[68 + 84 * (i // 5), 36 + 70 * (i % 5)].tolist() for i in range(25)]
    assert shown == [[40 + i] * 3 for i in range(59, 34, -1)]


@pytest.mark.parametrize("count", [3, 30])
def test_the_first_five_examples_have_their_answers(count):
    examples, logits = make_examples(count, mistakes=0)
    before = pictures.draw_examples(examples, logits)
    side, cell = 66, 70
    for i in range(5):
        pixels = np.asarray(before)[-side - 4 : -4, 2 + cell * i : 2 + cell * i + side, 0]
        image = np.asarray(Image.fromarray(examples.images[i, :, :, 0]).resize((side, side))) if i < count else 255
        np.testing.assert_array_equal(pixels, image)
    logits[1] = np.roll(logits[1], 1)
    wrong = pictures.draw_examples(examples, logits)
    left, top, right, bottom = changed(before, wrong)
    assert cell < left <= right < 2 * cell
    assert bottom - top < canvas.LINE
    red, _, blue = np.asarray(wrong, int)[20:].transpose(2, 0, 1)  # below the title
    assert set((red > blue + 50).nonzero()[1] // cell) == {1}  # only the mistake is red


# Accuracies


# Filters


def sequential(*layers):
    return keras.Sequential([keras.Input([28, 28, 1]), *layers, keras.layers.Flatten(), keras.layers.Dense(10)])


# Curves


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


# Files and notebooks


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
