"""The pictures of a run: their content, their width, their files, and the losses that the curves draw."""

from mnist import data, finished
from mnist.data import Examples
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep
from mnist.summaries import Summaries, canvas, pictures

import keras
import matplotlib.figure
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


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


def test_names_that_the_font_lacks_are_drawn_as_numbers():
    matrix = np.eye(2, dtype=int)
    assert pictures.draw_confusions(matrix, ("あ", "い")) == pictures.draw_confusions(matrix, ("0", "1"))


@pytest.mark.parametrize("text", ["Ankle boot", "a name that goes on and on 1", "i" * 500 + "1"])
def test_a_long_name_keeps_its_beginning_and_its_end(text):
    short = canvas.cut(text, 62)
    assert canvas.FONT.getlength(short) <= 62
    assert (short[0], short[-1]) == (text[0], text[-1])
    assert len(short) > 8


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


@pytest.mark.parametrize("names", [names_of(10), FASHION])
@pytest.mark.parametrize("mistakes", [0, 6])
def test_no_other_images_than_the_mistakes_are_drawn(mistakes, names):
    examples, logits = make_examples(50, mistakes=mistakes)
    examples = Examples(np.full_like(examples.images, 77), examples.labels)
    picture = pictures.draw_mistakes(examples, logits, names)
    assert ink(picture, 77).sum() // (66 * 66) == mistakes  # letters have a few such pixels
    if not mistakes:
        assert picture.height < 30
        assert np.asarray(picture.convert("L")).min() < 100  # a title


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


def test_bars_are_as_long_as_accuracies_and_the_worst_is_red():
    labels = np.repeat(np.arange(10), 100)
    predictions = labels.copy()
    predictions[300:340] = 0  # 60 %
    predictions[700:720] = 0  # 80 %
    picture = pictures.draw_accuracies(labels, predictions)
    rows = 34 + 16 * np.arange(10)  # the first line of each bar, above its text
    red, blue = (ink(picture, colour).sum(axis=1)[rows] for colour in (canvas.RED, canvas.BLUE))
    assert red.nonzero()[0].tolist() == [3]
    lengths = (red + blue) / blue[0]
    start = 0.5  # of the axis
    assert lengths[3] == pytest.approx((0.6 - start) / (1 - start), abs=0.01)
    assert lengths[7] == pytest.approx((0.8 - start) / (1 - start), abs=0.01)


def test_the_worst_of_many_classes_are_drawn_without_those_that_have_no_images():
    labels = np.repeat(np.arange(0, 120, 2), 10)  # 60 of 120 classes
    predictions = labels.copy()
    predictions[590:597] = 0  # of class 118
    names = [f"class {i:03}" for i in range(120)]
    before = pictures.draw_accuracies(labels, predictions, names)
    assert before.height == (25 + 2) * 16 + 2
    names[118] = "another"
    _, top, _, bottom = changed(before, pictures.draw_accuracies(labels, predictions, names))
    assert 32 <= top <= bottom < 50  # the first bar
    names[1] = names[119] = "without images"
    assert changed(before, pictures.draw_accuracies(labels, predictions, names))[3] < 50
    few = pictures.draw_accuracies(labels[:100], predictions[:100], names)
    assert few.height == (10 + 2) * 16 + 2


# Filters


def sequential(*layers):
    return keras.Sequential([keras.Input([28, 28, 1]), *layers, keras.layers.Flatten(), keras.layers.Dense(10)])


def test_the_filters_are_those_of_the_image_on_one_scale():
    conv = keras.layers.Conv2D
    model = sequential(keras.layers.Rescaling(2.0), keras.Sequential([conv(2, 2), conv(1, 2), conv(3, 3)]))
    kernel = np.zeros([2, 2, 1, 2], np.float32)
    kernel[0, 1, 0, 0], kernel[1, 0, 0, 1], kernel[1, 1, 0, 1] = -2, 2, 1
    model.layers[1].layers[0].kernel.assign(kernel)
    picture = np.asarray(pictures.draw_filters(model))
    first, second = (picture[20:58, x : x + 38] for x in (2, 45))  # two rows and two columns of 19 pixels
    assert first[9, 28].tolist() == list(canvas.BLUE)
    assert second[28, 9].tolist() == list(canvas.RED)
    assert second[28, 28].tolist() == pytest.approx((255 + np.array(canvas.RED)) / 2, abs=1)
    assert (first[9, 9] == 255).all()


def test_a_model_without_convolutions_of_the_image_has_no_filters():
    deep = sequential(keras.layers.DepthwiseConv2D(3, depth_multiplier=4), keras.layers.Conv2D(8, 3))
    assert pictures.draw_filters(sequential()) is None
    assert pictures.draw_filters(deep) is None
    assert pictures.draw_filters(CNN()) is not None


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


@pytest.fixture
def axes_of(monkeypatch):
    """Returns a function from runs to the two axes of their curves."""
    figures = []
    savefig = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))[1]
    )

    def draw(runs):
        pictures.draw_curves(runs)
        return figures[-1].axes

    return draw


def test_the_axes_show_what_the_run_reached(axes_of):
    """The accuracy of a run that diverges at its end, and a loss below zero."""
    history = make_history(1)
    history += [{"step": 10 * i, "validation_accuracy": 0.95, "train_accuracy": None} for i in range(1, 9)]
    history += [{"step": 90, "validation_accuracy": 0.1, "train_accuracy": None, "train_loss": -1.0}]
    loss, accuracy = axes_of(history)
    assert accuracy.get_ylim()[0] < 0.1
    assert loss.get_yscale() == "linear"
    assert loss.get_ylim()[0] < -1


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


@pytest.mark.parametrize("found", ["no folder", "an empty folder", "damaged files"])
def test_a_run_without_event_files_has_no_losses_by_step(run, tmp_path, found):
    run.workdir = str(tmp_path)
    if found != "no folder":
        (tmp_path / "train").mkdir()
    if found == "damaged files":
        (tmp_path / "train" / "events.out.tfevents.1.x").write_bytes(b"x" * 999)
    assert run.batch_losses() is None
