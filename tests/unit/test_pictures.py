"""Pictures of a run: what they show, how wide they are, as PNG files, and as a notebook shows them."""

import subprocess
import sys

import mnist
from mnist import data, finished
from mnist.data import Examples
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep
from mnist.summaries import canvas, pictures

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def names_of(classes):
    return tuple(map(str, range(classes)))


def make_examples(num_examples, classes=10, mistakes=20):
    """Examples of random images, and logits that are wrong for the first of them."""
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
    """Where two pictures of one size differ: x and y of the first and of the last pixel."""
    assert one.size == other.size
    y, x = np.nonzero((np.asarray(one) != np.asarray(other)).any(axis=2))
    return x.min(), y.min(), x.max(), y.max()


def has_ink(picture, colour):
    return (np.asarray(picture) == colour).all(axis=2).any()


@pytest.mark.parametrize("classes", [2, 10, 20, 26, 47, 100, 300, 301, 1000])
@pytest.mark.parametrize("name", ["{}", "the long name of class {}"])
def test_all_but_the_curves_fit_into_a_card_of_tensorboard(classes, name):
    names = tuple(map(name.format, range(classes)))
    examples, logits = make_examples(3000, classes)
    drawn = [
        pictures.draw_confusions(np.full([classes, classes], 10**6), names),
        pictures.draw_mistakes(examples, logits, names),
        pictures.draw_accuracies(examples.labels, logits.argmax(axis=1), names),
    ]
    for picture in drawn:
        assert picture.width <= 350
        low, high = picture.convert("L").getextrema()  # something is drawn, on white
        assert low < 100 < high


# Confusion matrices


@pytest.mark.parametrize("classes", [2, 20, 47, 66, 300, 400, 1000])
@pytest.mark.parametrize("beside", [False, True])
def test_a_single_mistake_is_seen_where_it_is(classes, beside):
    """In the first column of the last row, or beside the diagonal, where one pixel stands for both."""
    matrix = 500 * np.eye(classes, dtype=int)
    before = pictures.draw_confusions(matrix, names_of(classes))
    column = classes - 2 if beside else 0
    matrix[classes - 1, column] = 1
    after = pictures.draw_confusions(matrix, names_of(classes))
    left, top, right, bottom = changed(before, after)
    margin, end = 30, before.width  # the margin is at most that wide
    cell = max(1, (end - margin) / classes)
    assert top >= end - 1.2 * cell - 3
    assert bottom < end
    if beside:
        assert end - 2.4 * cell - 3 <= left <= right < end
    else:
        assert right < margin + 1.2 * cell + 10
    difference = np.abs(np.asarray(before, int) - np.asarray(after)).max()
    assert difference > (30 if classes <= 20 else 100)  # a small cell needs a strong colour


@pytest.mark.parametrize("names", [names_of(10), FASHION, tuple(f"a name that goes on and on {i}" for i in range(10))])
def test_counts_are_legible_at_ten_classes(names):
    matrix = 1000 * np.eye(10, dtype=int)
    matrix[4, 9] = 27
    picture = pictures.draw_confusions(matrix, names)
    matrix[4, 9] = 21
    left, top, right, bottom = changed(picture, pictures.draw_confusions(matrix, names))
    assert right - left >= 4  # of the last digit, seven for one
    assert bottom - top >= 7
    matrix[4, 9], matrix[0, 0] = 27, 1007
    left, _, right, _ = changed(picture, pictures.draw_confusions(matrix, names))
    assert right - left >= 4


def test_names_with_other_than_ascii_are_drawn_as_numbers():
    matrix = np.eye(2, dtype=int)
    assert pictures.draw_confusions(matrix, ("あ", "い")) == pictures.draw_confusions(matrix, ("0", "1"))


@pytest.mark.parametrize("text", ["Ankle boot", "a name that goes on and on 1", "i" * 500 + "1"])
def test_a_long_name_keeps_its_beginning_and_its_end(text):
    short = canvas.cut(text, 62)
    assert canvas.FONT.getlength(short) <= 62
    assert (short[0], short[-1]) == (text[0], text[-1])
    assert len(short) > 8


# Mistakes


def test_the_worst_mistakes_come_first_and_what_was_right_not_at_all():
    images = np.repeat(np.arange(40, 140, dtype=np.uint8), 28 * 28).reshape(100, 28, 28, 1)  # each of a grey of its own
    labels = np.zeros(100, int)
    logits = np.zeros([100, 10])
    logits[:, 0] = 1  # right, and still with a loss
    logits[np.arange(60), 1] = 2 + np.arange(60) / 10  # wrong, one more than the other
    picture = np.asarray(pictures.draw_mistakes(Examples(images, labels), logits))
    shown = [picture[68 + 84 * (i // 5), 36 + 70 * (i % 5)].tolist() for i in range(25)]
    assert shown == [[40 + i] * 3 for i in range(59, 34, -1)]


@pytest.mark.parametrize("names", [names_of(10), FASHION])
@pytest.mark.parametrize("mistakes", [1, 5, 6])
def test_there_are_as_many_as_there_are_mistakes(mistakes, names):
    examples, logits = make_examples(50, mistakes=mistakes)
    examples = Examples(np.full_like(examples.images, 77), examples.labels)
    picture = np.asarray(pictures.draw_mistakes(examples, logits, names))
    assert (picture == 77).all(axis=2).sum() // (66 * 66) == mistakes  # a few are of letters


@pytest.mark.parametrize("names", [names_of(10), FASHION])
def test_a_label_a_prediction_and_its_probability_stand_above_their_image(names):
    examples, logits = make_examples(50)
    drawn = [pictures.draw_mistakes(examples, logits, names)]
    worst = np.argsort([-np.log(np.exp(x - x[y]).sum()) for x, y in zip(logits, examples.labels, strict=True)])
    worst = [i for i in worst if logits[i].argmax() != examples.labels[i]][:5]
    order = -np.array([np.log(np.exp(logits[i] - logits[i, examples.labels[i]]).sum()) for i in worst])
    assert (np.diff(order) >= 0).all()
    other = logits.copy()
    fourth = worst[3]
    prediction = other[fourth].argmax()
    free = next(k for k in range(10) if k not in (prediction, examples.labels[fourth]))
    other[fourth, [free, prediction]] = other[fourth, [prediction, free]]  # another prediction, the same loss
    drawn.append(pictures.draw_mistakes(examples, other, names))
    left, top, right, bottom = changed(*drawn)
    assert 3 * 70 <= left <= right < 4 * 70
    assert 20 <= top <= bottom < (34 if names != FASHION else 62)


def test_no_mistakes_are_said():
    examples, logits = make_examples(50, mistakes=0)
    picture = pictures.draw_mistakes(examples, logits)
    assert picture.height < 30
    assert np.asarray(picture.convert("L")).min() < 100


# Accuracies


def test_the_worst_class_stands_out_and_bars_are_as_long_as_accuracies():
    labels = np.repeat(np.arange(10), 100)
    predictions = labels.copy()
    predictions[300:340] = 0  # 60 %
    predictions[700:720] = 0  # 80 %
    picture = np.asarray(pictures.draw_accuracies(labels, predictions))
    red = (picture == canvas.RED).all(axis=2)
    blue = (picture == canvas.BLUE).all(axis=2)
    rows = 34 + 16 * np.arange(10)  # the first line of each bar, above its text
    assert red.sum(axis=1)[rows].nonzero()[0].tolist() == [3]
    lengths = (red | blue).sum(axis=1)[rows] / blue.sum(axis=1)[rows[0]]
    start = 0.5  # of the axis
    assert lengths[3] == pytest.approx((0.6 - start) / (1 - start), abs=0.01)
    assert lengths[7] == pytest.approx((0.8 - start) / (1 - start), abs=0.01)


@pytest.mark.parametrize("wrong", [0, 1, 50, 500, 990, 1000])
def test_a_class_of_any_accuracy_is_seen_to_be_short_of_all(wrong):
    labels = np.repeat([0, 1], 1000)
    predictions = np.where(np.arange(2000) < wrong, 1, labels)
    picture = np.asarray(pictures.draw_accuracies(labels, predictions, ("cat", "dog")))
    red, blue = ((picture == colour).all(axis=2).sum(axis=1) for colour in (canvas.RED, canvas.BLUE))
    assert (red.max() > 0) == (wrong > 0)
    assert blue[50] > red[34]  # the second bar and the first


def test_of_many_classes_the_worst_are_drawn_and_those_without_images_left_out():
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


def test_filters_are_those_on_the_image_on_one_scale():
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
    assert has_ink(picture, canvas.RED)


@pytest.mark.parametrize("filters", [1, 64, 300, 2000])
@pytest.mark.parametrize("size", [1, (1, 7), 28])
def test_filters_of_any_number_and_size_fit(filters, size):
    picture = pictures.draw_filters(sequential(keras.layers.Conv2D(filters, size)))
    assert picture.width <= 350
    assert picture.height <= 400
    assert np.asarray(picture).min() < 100


def test_a_model_without_convolutions_of_the_image_has_no_filters():
    deep = sequential(keras.layers.DepthwiseConv2D(3, depth_multiplier=4), keras.layers.Conv2D(8, 3))
    assert pictures.draw_filters(sequential()) is None
    assert pictures.draw_filters(deep) is None
    assert pictures.draw_filters(CNN()) is not None


# Curves


def make_batch_losses(steps):
    return np.arange(1, steps + 1), np.linspace(2.3, 0.1, steps, dtype=np.float32)


@pytest.mark.parametrize("num_entries", [0, 1, 2, 9])
@pytest.mark.parametrize("steps", [None, 0, 1, 5000])
def test_curves_of_one_run_and_of_several(num_entries, steps):
    history = make_history(num_entries)[:num_entries]
    batch_losses = None if steps is None else make_batch_losses(steps)
    alone = pictures.draw_curves(history)
    runs = dict.fromkeys(("a", "train", "_b$x^$", "い" * 100), (history, batch_losses))
    for picture in (alone, pictures.draw_curves(runs), pictures.draw_curves({"a": history, "b": history})):
        low, high = picture.convert("L").getextrema()
        assert low < 100 < high
        assert picture.size >= (1000, 400)


def axes_of(monkeypatch, runs):
    """The two axes that are drawn."""
    import matplotlib.figure

    figures = []
    savefig = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))[1]
    )
    pictures.draw_curves(runs)
    return figures[0].axes


@pytest.mark.parametrize("last", [0.99, 0.1])
def test_early_accuracies_do_not_squash_later_ones_that_all_are_seen(monkeypatch, last):
    history = make_history(1)
    for i in range(1, 10):
        accuracy = 0.95 + 0.004 * i if i < 9 else last  # a run that falls apart is to be seen to
        history.append({"step": 10 * i, "validation_accuracy": accuracy, "train_accuracy": None})
    low, high = axes_of(monkeypatch, history)[1].get_ylim()
    assert high > 0.98
    if last == 0.99:
        assert 0.95 < low < 0.962  # the lowest that is not early
    else:
        assert low < 0.1


def test_losses_that_may_be_zero_or_less_are_drawn(monkeypatch):
    history = make_history(5)
    assert axes_of(monkeypatch, history)[0].get_yscale() == "log"
    history[2]["train_loss"] = -1.0
    axes = axes_of(monkeypatch, history)[0]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < -1


def test_the_loss_of_each_step_begins_at_the_first_and_is_smoothed(monkeypatch):
    random = np.random.default_rng(0)
    steps = np.arange(1, 5001)
    losses = np.exp(random.normal(0, 1, 5000))
    lines = axes_of(monkeypatch, {"a": (make_history(3), (steps, losses))})[0].lines
    x, y = lines[-1].get_data()
    assert len(x) <= 300
    assert x[0] < 50
    assert y.mean() == pytest.approx(losses.mean(), rel=0.01)
    assert y.std() < 0.3 * losses.std()


def test_a_training_run_needs_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import mnist.train, mnist.summaries"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# The first test images


@pytest.mark.parametrize("count", [3, 30])
def test_the_first_examples_have_their_answers_a_mistake_in_red(count):
    examples, logits = make_examples(count, mistakes=0)
    right = pictures.draw_examples(examples, logits)
    assert right.width == canvas.WIDTH
    shown = np.asarray(right)[:, :, 0]
    side = canvas.WIDTH // 5 - 4
    for i in range(5):
        x = 2 + i * canvas.WIDTH // 5
        pixels = shown[-side - 4 : -4, x : x + side]
        small = np.asarray(Image.fromarray(examples.images[i, :, :, 0]).resize((side, side))) if i < count else 255
        np.testing.assert_array_equal(pixels, small)
    logits[1] = np.roll(logits[1], 1)
    x0, y0, x1, y1 = changed(right, pictures.draw_examples(examples, logits))
    assert canvas.WIDTH // 5 < x0 < x1 < 2 * canvas.WIDTH // 5  # the answer to the second image
    assert y1 - y0 < canvas.LINE
    red = np.asarray(canvas.RED)
    columns = np.nonzero((np.asarray(pictures.draw_examples(examples, logits)) == red).all(axis=2))
    assert (columns[1][columns[0] > canvas.LINE] // (canvas.WIDTH // 5) == 1).all()


# Files, a notebook, a command


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(mnist.Error, match="cannot write"):
        pictures.save_pictures({"a": Image.new("RGB", (9, 9))}, str(tmp_path / "plots"))
    assert (tmp_path / "plots").read_text() == "mine"


def test_a_notebook_shows_a_picture_as_one():
    examples, _ = make_examples(30)
    drawn = pictures.draw_run(CNN(), examples, names_of(10), make_history(3))
    assert drawn.keys() == {"curves", "examples", "confusion_matrix", "mistakes", "accuracies", "filters"}
    for picture in drawn.values():
        assert picture._repr_png_().startswith(b"\x89PNG")  # what IPython asks a cell's value for


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run in a folder with an odd name."""
    keras.utils.set_random_seed(0)
    workdir = tmp_path_factory.mktemp("runs") / "a,b [c]*"
    step = TrainStep(CNN(), keras.optimizers.Adam(1e-3), seed=0)
    train_and_evaluate(step, data.load("digits"), str(workdir), epochs=1, max_steps=3)
    return workdir


def write_losses(folder, start, losses):
    """Writes as a process of a run does that begins after step `start`."""
    from mnist.summaries import Summaries

    summaries = Summaries(str(folder))
    summaries.begin(start, {}, str(folder))
    summaries.write_steps(start + 1, {"batch/loss": tf.constant(losses, tf.float32)})
    summaries.close()


def test_the_loss_of_each_step_is_read_as_it_is_after_a_resume(run, tmp_path):
    workdir = tmp_path / "a,b [c]*"
    losses = np.linspace(2, 1, 12_000, dtype=np.float32)  # more than TensorBoard's reader keeps unless it is told to
    write_losses(workdir, 0, losses)
    write_losses(workdir, 11_990, [5, 6, 7])
    trained = finished.load(str(run))
    trained.workdir = str(workdir)
    steps, values = trained.batch_losses()
    np.testing.assert_array_equal(steps, np.arange(1, 11_994))
    np.testing.assert_array_equal(values, [*losses[:11_990], 5, 6, 7])


@pytest.mark.parametrize("there", ["no folder", "an empty folder", "damaged files", "other tags"])
def test_a_run_without_losses_of_steps_has_none(run, tmp_path, there):
    trained = finished.load(str(run))
    trained.workdir = str(tmp_path)
    if there != "no folder":
        (tmp_path / "train").mkdir()
    if there == "damaged files":
        (tmp_path / "train" / "events.out.tfevents.1.x").write_bytes(b"x" * 999)
    if there == "other tags":
        with tf.summary.create_file_writer(str(tmp_path / "train")).as_default(step=1):
            tf.summary.scalar("epoch_loss", 1.0)
    assert trained.batch_losses() is None
