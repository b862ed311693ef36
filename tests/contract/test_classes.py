"""Data sets with other classes than ten digits: read, refused, trained, reported, drawn."""

import gzip
import hashlib
import os
import types

import mnist
from mnist import data, evaluate, finished
from mnist.data import folders
from mnist.research.adversarial import Adversarial
from mnist.settings import settings_of

import numpy as np
import pytest
from conftest import idx_bytes, random_examples
from PIL import Image


def cycle(count, classes, first=0):
    return first + np.arange(count) % classes


def write_idx(folder, train_labels, test_labels, names=folders.IDX_FILES):
    """Writes four IDX files with random images. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in enumerate((train_labels, test_labels)):
        images, _ = random_examples(len(labels), part)
        contents = (idx_bytes(images), idx_bytes(np.asarray(labels, np.uint8)))
        for name, content in zip(names[2 * part : 2 * part + 2], contents, strict=True):
            (folder / name).write_bytes(content)
    return folder


def write_npz(path, train_labels, test_labels, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    x_train, x_test = (random_examples(len(labels), i)[0] for i, labels in enumerate((train_labels, test_labels)))
    arrays = {"x_train": x_train, "y_train": train_labels, "x_test": x_test, "y_test": test_labels} | arrays
    np.savez(path, **arrays)
    return path


def emnist_names(split):
    return [f"emnist-{split}-{name.replace('t10k', 'test')}" for name in folders.IDX_FILES]


def write_kmnist(folder, classes, prefix="kmnist"):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 2 * classes), ("test", classes)):
        images, _ = random_examples(count)
        np.savez_compressed(folder / f"{prefix}-{part}-imgs.npz", images)
        np.savez_compressed(folder / f"{prefix}-{part}-labels.npz", cycle(count, classes).astype(np.uint8))
    return folder


def load_error(path):
    with pytest.raises(mnist.Error) as caught:
        data.load("auto", str(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Data that are read


@pytest.mark.parametrize("classes", [2, 256])
def test_the_labels_give_the_number_of_classes(tmp_path, classes):
    """Classes without training images count, too."""
    labels = np.append(cycle(classes + 5, classes), classes - 1)
    labels = labels[(labels != 1) | (classes == 2)]
    for place in (write_idx(tmp_path / "own", labels, labels), write_npz(tmp_path / "own.npz", labels, labels)):
        dataset = data.load("auto", str(place))
        assert dataset.classes == tuple(map(str, range(classes)))
        for examples in (dataset.train, dataset.test):
            assert examples.labels.dtype == np.uint8
            np.testing.assert_array_equal(examples.labels, labels)


def test_emnist_letters_stand_upright_and_count_from_zero(tmp_path):
    folder = write_idx(tmp_path, cycle(1301, 26, first=1), cycle(26, 26, first=1), emnist_names("letters"))
    dataset = data.load("auto", str(folder))
    assert "".join(dataset.classes) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for part, examples in enumerate((dataset.train, dataset.test)):
        written, _ = random_examples(len(examples.labels), part)
        np.testing.assert_array_equal(examples.images[..., 0], written.transpose(0, 2, 1))
        np.testing.assert_array_equal(examples.labels, cycle(len(examples.labels), 26))


@pytest.mark.parametrize(("prefix", "classes"), [("kmnist", 10), ("k49", 49)])
def test_kmnist(tmp_path, prefix, classes):
    dataset = data.load("auto", str(write_kmnist(tmp_path, classes, prefix)))
    assert len(dataset.classes) == classes
    assert dataset.classes[-1] == {10: "wo", 49: "repeat"}[classes]
    np.testing.assert_array_equal(dataset.train.images[..., 0], random_examples(2 * classes)[0])
    np.testing.assert_array_equal(dataset.test.labels, np.arange(classes))


# Data that are refused


def test_two_data_sets_of_emnist_in_one_folder_are_refused(tmp_path):
    for name in ("letters", "balanced"):
        write_idx(tmp_path, cycle(30, 26), cycle(26, 26), emnist_names(name))
    assert "more than one data set, emnist-balanced-*, emnist-letters-*: name a" in load_error(tmp_path)


def test_labels_of_one_class_or_counted_otherwise_in_one_part_are_refused(tmp_path):
    path = write_npz(tmp_path / "own.npz", np.full(20, 7), np.full(9, 7))
    assert "all training labels are 7, expected 2 to 256 classes" in load_error(path)
    folder = write_idx(tmp_path / "letters", cycle(30, 26, first=1), cycle(26, 26), emnist_names("letters"))
    assert "a test label is 0, but training labels begin with 1" in load_error(folder)


# Names of classes


def test_a_classes_txt_names_the_classes(tmp_path):
    folder = write_idx(tmp_path, cycle(30, 26), cycle(26, 26), emnist_names("letters"))
    names = [f"буква {i}" for i in range(26)]
    (folder / "classes.txt").write_bytes(("\ufeff" + "\r\n".join(names) + "\r\n\r\n").encode())
    assert data.load("auto", str(folder)).classes == tuple(names)
    path = write_npz(tmp_path / "npz" / "own.npz", cycle(4, 2), cycle(4, 2))
    (path.parent / "classes.txt").write_text("cat\n dog \n")
    assert data.load("auto", str(path)).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (b"a\nb\n", "classes.txt names 2 classes, expected 3: the labels are 0 to 2."),
        (b"a\nb\nc\n", "expected 4: the labels are 0 to 3. The first label must be 0."),
        (b"a\n\nc\n", "line 2 is '', expected at most 256 different names"),
        (b"a\nb\nb\n", "line 3 is 'b', expected at most 256 different names"),
        (b"a\nb\xff\nc\n", "classes.txt: 'utf-8' codec can't decode byte 0xff in position 3"),
        (b"0\tcat\n1\tdog\n2\tcow\n", "line 1 is '0\\tcat', expected"),
    ],
)
def test_an_unsound_classes_txt_is_refused(tmp_path, content, trouble):
    first = int("first label" in trouble)
    write_npz(tmp_path / "own.npz", cycle(20, 3, first), cycle(9, 3, first))
    (tmp_path / "classes.txt").write_bytes(content)
    assert trouble in load_error(tmp_path)


def test_fashion_is_recognized_by_its_labels_in_a_folder_of_any_name(tmp_path, monkeypatch):
    labels = cycle(30, 10).astype(np.uint8)
    monkeypatch.setattr(data.folders, "FASHION_LABELS_SHA256", hashlib.sha256(labels).hexdigest())
    folder = write_idx(tmp_path / "x", labels, labels)
    dataset = data.load("auto", str(folder))
    assert (dataset.name, dataset.classes[9]) == ("fashion_mnist", "Ankle boot")
    other = write_idx(tmp_path / "y", labels[::-1], labels)
    assert data.load("auto", str(other)).classes == data.DIGITS
    assert data.load("fashion_mnist", str(other)).classes[0] == "T-shirt/top"


def test_kmnist_is_recognized_by_its_packed_labels(tmp_path, monkeypatch):
    labels = cycle(30, 10)
    folder = write_idx(tmp_path / "x", labels, labels)
    for path in [*folder.iterdir()]:
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert data.load("auto", str(folder)).classes == data.DIGITS
    packed = (folder / f"{folders.IDX_FILES[1]}.gz").read_bytes()
    monkeypatch.setattr(folders, "KMNIST_LABELS_GZ_SHA256", hashlib.sha256(packed).hexdigest())
    assert data.load("auto", str(folder)).classes[:2] == ("o", "ki")


# A run


@pytest.fixture
def launch(command):
    """Runs `python -m mnist.train` in this process. Returns: the exit code or message."""
    return lambda *arguments, **launched: command("--batch_size=8", *arguments, **launched)[0]


def report(capfd, workdir, **options):
    """Returns the output of mnist.evaluate."""
    defaults = {name: setting.default for name, setting in settings_of(evaluate.Evaluate).items()}
    evaluate.main(types.SimpleNamespace(**defaults | options | {"workdir": (workdir,)}))
    return capfd.readouterr().out


LONG = tuple(f"{'a name that goes on and on ' * 3}{i}" for i in range(256))


@pytest.mark.parametrize(
    ("classes", "names", "options"),
    [(2, ("cat", "dog"), {"step": Adversarial}), (256, LONG, {})],
    ids=["2", "256"],
)
def test_a_run_from_training_to_pictures(tmp_path, launch, capfd, classes, names, options):
    labels = (cycle(4 * classes + more, classes) for more in (16, 6))
    folder = write_npz(tmp_path / "data" / "own.npz", *labels).parent
    (folder / "classes.txt").write_text("\n".join(names))
    workdir = str(tmp_path / "run")
    assert launch(f"--data_dir={folder}", "--max_steps=2", f"--workdir={workdir}", **options) == 0
    trained = finished.load(workdir)
    assert trained.classes == names
    assert trained.model.logits.units == classes
    out = report(capfd, workdir)
    assert out.count("\n") < classes + 40
    assert max(map(len, out.splitlines())) < 120
    assert all(f"{name}  " in out or f"{name[:14]}...{name[-7:]}  " in out for name in names)
    report(capfd, workdir, plots=os.path.join(workdir, "plots"))
    for name in ("mistakes", "confusion_matrix", "accuracies"):
        with Image.open(os.path.join(workdir, "plots", f"{name}.png")) as image:
            assert image.width <= 350
            low, high = image.convert("L").getextrema()
            assert low < 100 < high


# Reports and pictures


def test_changed_test_data_give_a_warning_and_unknown_labels_an_error(tmp_path, launch, capfd, caplog):
    folder, workdir = tmp_path / "data", str(tmp_path / "run")
    write_npz(folder / "own.npz", cycle(48, 3), cycle(9, 3))
    assert launch(f"--data_dir={folder}", f"--workdir={workdir}", "--max_steps=1", "--holdout=8") == 0
    commands = [lambda: report(capfd, workdir), lambda: report(capfd, workdir, plots=str(tmp_path / "plots"))]

    def warned(command):
        caplog.clear()
        command()
        return caplog.messages

    for command in commands:
        assert warned(command) == []
    with np.load(folder / "own.npz") as arrays:
        np.savez(tmp_path / "alone.npz", x_test=arrays["x_test"], y_test=arrays["y_test"])
    assert report(capfd, workdir, data_dir=str(tmp_path / "alone.npz")) == report(capfd, workdir)
    write_npz(folder / "own.npz", cycle(48, 3), cycle(9, 3), x_train=np.zeros([48, 28, 28], np.uint8))
    for command in commands:
        assert warned(command) == []  # because neither uses the training images
    said = [f"The test set of data in {folder} has changed since {workdir} was trained."]
    for changed in ({"y_test": cycle(9, 2)}, {"x_test": np.zeros([9, 28, 28], np.uint8)}):
        write_npz(folder / "own.npz", cycle(48, 3), cycle(9, 3), **changed)
        for command in commands:
            assert warned(command) == said
        assert warned(lambda: report(capfd, workdir, data_dir=str(folder))) == []  # because the user named these data
    write_npz(folder / "own.npz", cycle(48, 4), cycle(9, 4))
    for command in commands:
        with pytest.raises(mnist.Error, match=r"run has 3 classes, but data has test labels up to 3\.$"):
            command()
