"""Data sets: MNIST, Fashion-MNIST, scikit-learn's digits, or a folder in MNIST's format."""

import hashlib
import os
import tempfile
import threading
from typing import NamedTuple

from mnist import Error
from mnist.data import folders, readers
from mnist.data.folders import IDX_FILES
from mnist.data.readers import DIGITS, MAX_CLASSES, SIDE
from mnist.settings import local_path

import numpy as np
from absl import logging

NAMES = ("auto", "mnist", "fashion_mnist", "digits")
DOWNLOAD_STALL_SECONDS = 10
BOX = 20  # MNIST's digits fill a box of 20x20 within 28x28 (LeCun et al. 1998, p. 10)

STORE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# Digests from https://github.com/zalandoresearch/fashion-mnist, in the order of `IDX_FILES`.
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
# SHA-256 of MNIST's 60,000 training images, bytes alone: tells MNIST in a folder of any name.
_MNIST_IMAGES_SHA256 = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
# And of Fashion-MNIST's training labels.
FASHION_LABELS_SHA256 = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"


class Examples(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # uint8 [N, 28, 28, 1]
    labels: np.ndarray  # [N], from 0 on: uint8, or int32 with more than 256 classes

    def digest(self):
        """SHA-256 of images and labels, as hex."""
        return _digest([self])


class Dataset(NamedTuple):
    """A data set in three parts. Without a hold-out, `validation` is `test`, the same object."""

    name: str
    data_dir: str | None  # absolute; load(name, data_dir) brings the same data again
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...] = DIGITS  # the name of each label

    def digest(self):
        """SHA-256 of all that a run sees, as hex: tells data sets apart by content, not by name."""
        return _digest([self.train, self.validation] + ([] if self.test is self.validation else [self.test]))

    def is_framed(self):
        """Whether the training images are framed as MNIST's, by the first 1,000: nine in ten, some may be blank."""
        return bool(np.mean(is_framed(self.train.images[:1000, ..., 0])) > 0.9)


def _digest(parts):
    sha256 = hashlib.sha256()
    for examples in parts:
        for array in examples:
            sha256.update(np.ascontiguousarray(array))
    return sha256.hexdigest()


def is_framed(images):
    """Whether images `[..., 28, 28]` are framed as MNIST's, bool `[...]`: bright on black, in a box of 20x20 or 19."""
    ink = images != 0
    ends = [(np.argmax(inked, -1), np.argmax(inked[..., ::-1], -1)) for inked in (ink.any(-1), ink.any(-2))]
    sides = [SIDE - before - after for before, after in ends]
    return (images.max((-2, -1)) >= 128) & np.isin(np.maximum(*sides), (BOX - 1, BOX))


def load(name="auto", data_dir=None, holdout=0):
    """Loads a data set.

    Args:
      name: one of `NAMES`. `auto` is MNIST, from `data_dir` or the network, else `digits`.
      data_dir: a folder as `folders.find` takes it, images 28x28 in 2 to 1,000 classes, as the training labels
        say. A `classes.txt` in it names them. None: Keras' cache, else a download into it.
      holdout: number of images at the end of the training set that become the validation set.

    Returns: a `Dataset`. Raises: `mnist.Error` if it is missing or not sound.
    """
    if name == "digits":
        if data_dir:
            raise Error("--dataset=digits comes with scikit-learn: leave out --data_dir.")
        train, test, classes = _load_digits()
    elif data_dir:
        data_dir = os.path.abspath(local_path(data_dir))
        known = folders.FASHION_CLASSES if name == "fashion_mnist" else None
        train, test, classes = _read(folders.find(data_dir), data_dir, known)
        if name == "auto":
            is_mnist = hashlib.sha256(train.images).hexdigest() == _MNIST_IMAGES_SHA256
            folder = os.path.basename(data_dir)
            name = "mnist" if is_mnist else data_dir if folder in NAMES else folder
    elif name == "auto":
        try:
            name, (train, test, classes) = "mnist", _load_download("mnist")
        except Error as error:
            logging.warning("%s", error)
            logging.warning("MNIST IS MISSING: TRAINING ON THE 1,797 DIGITS OF SCIKIT-LEARN INSTEAD.")
            name, (train, test, classes) = "digits", _load_digits()
    elif name in NAMES:
        train, test, classes = _load_download(name)
    else:
        raise Error(f"{name!r} is none of {', '.join(NAMES)}: name the folder of a data set of your own as data_dir.")
    if not holdout:
        return Dataset(name, data_dir, train, test, test, classes)
    count = len(train.labels) - holdout
    if count <= 0:
        raise Error(f"--holdout={holdout} leaves none of {len(train.labels):,} training images: take fewer.")
    first, last = (Examples(train.images[s], train.labels[s]) for s in (slice(count), slice(count, None)))
    return Dataset(name, data_dir, first, last, test, classes)


def _read(files, place, known=None):
    """Reads a data set: labels first, and images only if all is as it should be.

    Args:
      files: `folders.Files`.
      place: the folder or file for messages; a `classes.txt` is looked for there.
      known: names of the classes, should there be as many and no `classes.txt`.

    Returns: training and test `Examples`, a tuple of names.
    """
    counts = [readers.count_images(*array) for array in (files.train_images, files.test_images)]
    labels = [readers.read_labels(*array) for array in (files.train_labels, files.test_labels)]
    for part, count, array in zip(("training", "test"), counts, labels, strict=True):
        if count != len(array):
            raise Error(f"{place}: {count:,} {part} images but {len(array):,} labels.")
        if not count:
            raise Error(f"{place}: no {part} images at all.")
    if files.emnist:
        known = folders.EMNIST_CLASSES.get(files.emnist, ())
        _count_from_zero(labels, files.emnist, len(known), place)
    elif hashlib.sha256(labels[0]).hexdigest() == FASHION_LABELS_SHA256:
        known = folders.FASHION_CLASSES
    classes = _name_classes(labels, place, known or ())
    labels = [array.astype(labels[0].dtype, copy=False) for array in labels]
    images = [readers.read_images(*array) for array in (files.train_images, files.test_images)]
    if files.emnist:
        for array in images:
            _transpose(array)
    return *map(Examples, images, labels), classes


def _count_from_zero(labels, split, num_classes, place):
    """Has the labels of EMNIST, an array for each part, begin with 0 in place: those of `letters` begin with 1."""
    train, test = labels
    if train.min() and (split == "letters" or train.max() == num_classes):
        if not test.min():
            raise Error(f"{place}: a test label is 0, but training labels begin with {train.min()}.")
        for array in labels:
            array -= 1


def _transpose(images):
    """Turns rows to columns in place: the images of EMNIST lie on their sides."""
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000]
        part[:] = part.swapaxes(1, 2).copy()


def _name_classes(labels, place, known):
    """Returns the names of the classes, as many as the labels say. Raises: `mnist.Error` if they are not taken."""
    train, test = labels
    last = int(train.max())
    if train.min() == last:
        raise Error(f"{place}: all training labels are {last}, expected 2 to {MAX_CLASSES:,} classes.")
    if test.max() > last:
        raise Error(f"{place}: a test label is {test.max()}, expected 0 to {last} as in training.")
    path = os.path.join(place if os.path.isdir(place) else os.path.dirname(place), "classes.txt")
    names = folders.read_classes(path)
    if names is None:
        return tuple(known[: last + 1]) if last < len(known) else tuple(map(str, range(last + 1)))
    if len(names) != last + 1:
        hint = " Labels are counted from 0." if train.min() and len(names) == last else ""
        raise Error(f"{path} names {len(names):,} classes, expected {last + 1:,}: the labels are 0 to {last}.{hint}")
    return names


def _load_digits():
    """The 1,797 digits of scikit-learn, 8x8 with 17 grey levels, framed as MNIST frames its own."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros([len(digits.images), SIDE, SIDE, 1], np.uint8)
    for image, small in zip(images, digits.images, strict=True):
        scaled = Image.fromarray((small * (255 / 16)).astype(np.uint8)).resize((20, 20), Image.BICUBIC)
        image[4:24, 4:24, 0] = scaled  # 20x20 within 28x28, as in MNIST
    labels = digits.target.astype(np.uint8)
    # The last images were written by other people than the first (scikit-learn, "Recognizing
    # hand-written digits"), so the split is in order, not at random.
    return Examples(images[:1500], labels[:1500]), Examples(images[1500:], labels[1500:]), DIGITS


def _load_download(name):
    """Loads `mnist` or `fashion_mnist` from Keras' cache, or downloads it there, digests checked."""
    if name == "mnist":
        files = [("mnist.npz", STORE + "mnist.npz", "datasets", MNIST_SHA256)]
    else:
        files = [
            (f"{file}.gz", f"{STORE}{file}.gz", os.path.join("datasets", "fashion-mnist"), md5)
            for file, md5 in zip(IDX_FILES, FASHION_MD5, strict=True)
        ]
    paths = [_fetch(*file) for file in files]
    if name == "mnist":
        return _read(folders.find(paths[0]), paths[0], DIGITS)
    return _read(folders.Files(*map(folders.Array, paths)), paths[0], folders.FASHION_CLASSES)


def _fetch(filename, url, folder, digest):
    """Returns the path of a file in Keras' cache, downloaded if need be. A stall is given up.

    The download runs in a thread of its own: a name server or a proxy that never answers heeds no
    socket's time-out. The thread of a stalled download dies with the process.
    """
    outcome = {}
    # As Keras has it, which made this folder if it could.
    home = os.path.expanduser(os.environ.get("KERAS_HOME", os.path.join("~", ".keras")))
    if not os.access(home, os.W_OK):
        home = os.path.join(tempfile.gettempdir(), ".keras")
    folder = os.path.join(home, folder)
    target = os.path.join(folder, filename)

    def fetch():
        try:
            import keras  # here: who reads files needs no TensorFlow

            outcome["path"] = keras.utils.get_file(filename, url, cache_subdir=folder, file_hash=digest)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    size = None
    while thread.is_alive():
        thread.join(DOWNLOAD_STALL_SECONDS)
        last, size = size, os.path.getsize(target) if os.path.exists(target) else 0
        if thread.is_alive() and size == (last or 0):
            outcome["error"] = f"nothing arrived for {DOWNLOAD_STALL_SECONDS} s"
            break
    if "error" in outcome:
        raise Error(
            f"cannot download {url}: {' '.join(str(outcome['error']).split())}. Give the files with "
            "--data_dir=FOLDER, or take --dataset=digits, which needs no network."
        )
    return outcome["path"]
