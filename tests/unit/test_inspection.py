"""The inspection of data before training: what is refused, what is reported, and how images are held out by class."""

import mnist
from mnist import data, finished
from mnist.data import Dataset, Examples, inspect
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from conftest import make_linear


def make(digits, change, held=0, classes=None):
    """Makes a data set of the digits. `change` writes to copies of training images, labels, test images, labels."""
    arrays = [array.copy() for array in (*digits.train, *digits.test)]
    change(*arrays)
    train, test = Examples(*arrays[:2]), Examples(*arrays[2:])
    classes = classes or tuple(map(str, range(int(train.labels.max()) + 1)))
    dataset = Dataset("own", None, train, test, test, classes)
    return dataset.hold_out(held) if held else dataset


def sort(x, y, *_):
    order = np.argsort(y, kind="stable")
    x[:], y[:] = x[order], y[order]


def keep_two(*arrays, labels=(3, 8)):
    for y in arrays[1::2]:
        y[:] = np.where(y < 5, *labels)


def jump(x, y, t, u):
    y[y > 6], u[u > 6], y[30] = 6, 6, 8


def copy(x, y, t, u):
    x[[700, 1450]], y[[700, 1450]], t[5:8], u[5:8] = x[3], y[3], x[3], y[3]
    x[900], y[900], t[0], u[0], x[20], x[21] = x[4], (y[4] + 1) % 10, x[5], (y[5] + 1) % 10, 0, 255


def divide(by, *places):
    return lambda *arrays: [np.floor_divide(arrays[i], by, out=arrays[i]) for i in places]


def halves(x, y, t, u):
    for images, labels, count in ((x, y, 75), (t, u, 280)):
        images[:], labels[:], labels[:count] = 0, 1, 0
        images[:count, :, :14] = images[count:, :, 14:] = 255


EMPTY = ("classes_without_training_images", "classes_without_test_images")
COPIES = {"images_with_two_labels": 2, "leaked_test_images": 4, "blank_images": 2}
WRONG = {
    "a label of 200": (lambda x, y, *_: y.put(7, 200), 0, r"190 of 201 .* from 9 to 200, first at training\[7\]"),
    "labels from 200 on": (lambda x, y, t, u: (y.__iadd__(200), u.__iadd__(200)), 0, "200 of 210 .* begin with 200"),
    "labels 0 and 255": (lambda *arrays: keep_two(*arrays, labels=(0, 255)), 0, "254 of 256 .* jump from 0 to 255"),
    "one label behind a gap": (jump, 0, r"1 of 9 \(7\), because labels jump from 6 to 8, first at training\[30\]"),
    "floats as uint8": (divide(255, 0, 2), 0, "grey levels of the training and test images: 0 to 1, expected"),
    "four bits in the test set": (divide(16, 2), 0, "grey levels of the test images: 0 to 15"),
    "inverted test images": (
        lambda x, y, t, _: np.subtract(255, t, out=t),
        0,
        "test images that look .* is -(0.9|1.0)",
    ),
    "a class is held out": (sort, 200, r"without training images: 1 of 10 \(9\); with .*--holdout_by=class"),
}
# A change, options of `make`, numbers that are not as in sound data, and a part of each line
ODD = {
    "copies": (
        *(copy, {}, COPIES | {"duplicate_images": 3}),
        *("blank images, of one grey level: 2 of 1,797", "training images: 3, as training[3] and training[700]"),
        *("two labels: 2, as training[4] and training[900]", "training set, too: 4, as training[5] and test[0]"),
    ),
    "copies, held out": (
        *(copy, {"held": 100}, COPIES | {"duplicate_images": 2, "leaked_validation_images": 1}),
        *("2 of 1,797", "training images: 2, as", "labels: 2, as", "as training[3] and validation[50]", "too: 4, as"),
    ),
    "sorted": (sort, {"held": 100}, {"classes_without_validation_images": 9}, "9 of 10 (0, 1, 2, 3, 4, ...); with -"),
    "a named class": (
        *(jump, {"classes": tuple("abcdefghi")}, dict(zip(EMPTY, (1, 2), strict=True))),
        *("without training images: 1 of 9 (h)", "without test images: 1 of 9 (i)", "(i), 1 in the smallest, 188 on"),
    ),
    "two digits": (keep_two, {}, dict.fromkeys(EMPTY, 7), "7 of 9 (0, "),
    "dim": (divide(4, 0), {}, {"grey_range": 63}, "training images: 0 to 63"),
    "nothing": (lambda *_: None, {"held": 100}, {}),
    "transposed": (
        lambda x, y, t, u: np.copyto(t, t.swapaxes(1, 2).copy()),
        {},
        {},
        "test images that look transposed: ",
    ),
    "upside down, training": (
        lambda x, *_: np.copyto(x, x[:, ::-1].copy()),
        {},
        {},
        "test images that look upside down",
    ),
    "other labels": (
        lambda x, y, t, u: np.copyto(u, (u + 1) % 10),
        {},
        {},
        "test labels of other classes, as 1 for images",
    ),
    "digits of 1 to 10": (
        lambda x, y, *_: np.copyto(y, (y + 9) % 10),
        {},
        {},
        "test labels of other classes, as 1 for im",
    ),
    "half are negatives": (lambda x, *_: np.subtract(255, x[1::2], out=x[1::2]), {}, {}, "training images of both pol"),
    "wrong labels": (lambda x, y, *_: np.copyto(y[::5], (y[::5] + 3) % 10), {}, {}),
    "other shares of two classes": (halves, {}, {"duplicate_images": 1498, "leaked_test_images": 297}, "copies", "too"),
}


@pytest.mark.parametrize(("change", "held", "message"), WRONG.values(), ids=WRONG)
def test_what_is_certainly_wrong_is_refused_before_anything_is_written(digits, tmp_path, change, held, message):
    dataset, step = make(digits, change, held), TrainStep(make_linear(), keras.optimizers.Adam())
    with pytest.raises(mnist.Error, match=f"^.*{message}.*\n.*: --allow_odd_data.$"):
        train_and_evaluate(step, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_counted_and_reported(name, digits):
    change, options, counts, *lines = ODD[name]
    found = inspect(make(digits, change, **options))
    counts |= {} if "held" in options else {k.replace("_test_", "_validation_"): v for k, v in counts.items()}
    assert (found.counts, found.wrong) == (dict.fromkeys(found.counts, 0) | {"grey_range": 255} | counts, [])
    assert all(part in line for part, line in zip(lines, found.odd, strict=True)), found.odd


def test_a_run_reports_once_and_other_commands_find_the_images_held_out(digits, tmp_path, capfd):
    dataset = (whole := make(digits, divide(255, 2))).hold_out(200, "class")
    step = TrainStep(make_linear(), keras.optimizers.Adam())
    for max_steps in (1, 2):
        results = train_and_evaluate(step, dataset, tmp_path, max_steps=max_steps, allow_odd_data=True)
        assert results.items() >= inspect(dataset).counts.items()
    assert capfd.readouterr().out.count("grey levels of the test images: 0 to 1, expected") == 1
    run = finished.load(tmp_path)
    run.data = whole
    assert run._own_data().digest() == dataset.digest()


@pytest.mark.parametrize(("change", "count"), [(sort, 100), (lambda *_: None, 997), (sort, 1), (jump, 1499)])
def test_a_hold_out_by_class_is_in_proportion_and_of_the_last_images(digits, change, count):
    whole = make(digits, change)
    labels, held = whole.train.labels, whole.hold_out(count, "class")
    sizes, numbers = (np.bincount(y, minlength=10) for y in (labels, held.validation.labels))
    assert (numbers.sum(), np.abs(numbers - sizes * count / 1500).max() < 1) == (count, True)
    is_held = np.zeros(1500, bool)
    for label, (size, number) in enumerate(zip(sizes, numbers, strict=True)):
        is_held[np.flatnonzero(labels == label)[size - number :]] = True
    for part, chosen in ((held.validation, is_held), (held.train, ~is_held)):
        assert part.digest() == Examples(*(array[chosen] for array in whole.train)).digest()
    with pytest.raises(mnist.Error, match="--holdout_by=class needs the number of images"):
        data.load("digits", holdout_by="class")
