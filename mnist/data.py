"""Data sets: MNIST, Fashion-MNIST, scikit-learn's digits, or a folder in MNIST's format."""

import hashlib
import os
import tempfile
import threading
from typing import NamedTuple

from mnist import Error, readers
from mnist.readers import DIGITS, NUM_CLASSES, SIDE
from mnist.settings import local_path

import keras
import numpy as np
from absl import logging

NAMES = ("auto", "mnist", "fashion_mnist", "digits")
DOWNLOAD_STALL_SECONDS = 10

_STORE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# Digests from https://github.com/zalandoresearch/fashion-mnist, in the order of `_IDX_FILES`.
_FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# SHA-256 of MNIST's 60,000 training images, bytes alone: tells MNIST in a folder of any name.
_MNIST_IMAGES_SHA256 = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"


class Examples(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # uint8 [N, 28, 28, 1]
    labels: np.ndarray  # uint8 [N], 0 to 9


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
        sha256 = hashlib.sha256()
        parts = [self.train, self.validation] + ([] if self.test is self.validation else [self.test])
        for examples in parts:
            for array in examples:
                sha256.update(np.ascontiguousarray(array))
        return sha256.hexdigest()


def load(name="auto", data_dir=None, holdout=0):
    """Loads a data set.

    Args:
      name: one of `NAMES`. `auto` is MNIST, from `data_dir` or the network, else `digits`.
      data_dir: a folder with the four IDX files (raw or .gz) or an `mnist.npz`, or the path of an
        npz file. None: Keras' cache, else a download into it.
      holdout: number of images at the end of the training set that become the validation set.

    Returns: a `Dataset`. Raises: `mnist.Error` if it is missing or not sound.
    """
    if name == "digits":
        if data_dir:
            raise Error("--dataset=digits comes with scikit-learn: leave out --data_dir.")
        train, test = _load_digits()
    elif data_dir:
        data_dir = os.path.abspath(local_path(data_dir))
        train, test = _load_folder(data_dir)
        if name == "auto":
            is_mnist = hashlib.sha256(train.images).hexdigest() == _MNIST_IMAGES_SHA256
            folder = os.path.basename(data_dir)
            name = "mnist" if is_mnist else data_dir if folder in NAMES else folder
    elif name == "auto":
        try:
            name, (train, test) = "mnist", _load_download("mnist")
        except Error as error:
            logging.warning("%s", error)
            logging.warning("MNIST IS MISSING: TRAINING ON THE 1,797 DIGITS OF SCIKIT-LEARN INSTEAD.")
            name, (train, test) = "digits", _load_digits()
    elif name in NAMES:
        train, test = _load_download(name)
    else:
        raise Error(f"{name!r} is none of {', '.join(NAMES)}: name the folder of a data set of your own as data_dir.")
    for part, examples in (("training", train), ("test", test)):
        _check(name, part, examples)
    if not holdout:
        return Dataset(name, data_dir, train, test, test)
    count = len(train.labels) - holdout
    if count <= 0:
        raise Error(f"--holdout={holdout} leaves none of {len(train.labels):,} training images: take fewer.")
    first, last = (Examples(train.images[s], train.labels[s]) for s in (slice(count), slice(count, None)))
    return Dataset(name, data_dir, first, last, test)


def _check(name, part, examples):
    images, labels = examples
    if len(images) != len(labels):
        raise Error(f"{name}: {len(images):,} {part} images but {len(labels):,} labels.")
    if not len(images):
        raise Error(f"{name}: no {part} images at all.")
    if labels.max() >= NUM_CLASSES:
        raise Error(f"{name}: a {part} label is {labels.max()}, expected 0 to {NUM_CLASSES - 1}.")


def _load_folder(data_dir):
    if not os.path.exists(data_dir):
        raise Error(f"--data_dir={data_dir} does not exist.")
    if not os.path.isdir(data_dir):
        return _load_npz(data_dir)
    if os.path.exists(path := os.path.join(data_dir, "mnist.npz")):
        return _load_npz(path)
    paths = []
    for name in _IDX_FILES:
        names = [n + end for n in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        found = [path for n in names if os.path.isfile(path := os.path.join(data_dir, n))]
        if not found:
            raise Error(f"--data_dir={data_dir} has no {name}[.gz], nor an mnist.npz.")
        paths.append(found[0])
    return _load_idx(paths)


def _load_idx(paths):
    arrays = [(readers.read_idx_images, readers.read_idx_labels)[i % 2](path) for i, path in enumerate(paths)]
    return Examples(*arrays[:2]), Examples(*arrays[2:])


def _load_npz(path):
    arrays = readers.read_npz(path)
    return Examples(arrays["x_train"], arrays["y_train"]), Examples(arrays["x_test"], arrays["y_test"])


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
    return Examples(images[:1500], labels[:1500]), Examples(images[1500:], labels[1500:])


def _load_download(name):
    """Loads `mnist` or `fashion_mnist` from Keras' cache, or downloads it there, digests checked."""
    if name == "mnist":
        files = [("mnist.npz", _STORE + "mnist.npz", "datasets", _MNIST_SHA256)]
    else:
        files = [
            (f"{file}.gz", f"{_STORE}{file}.gz", os.path.join("datasets", "fashion-mnist"), md5)
            for file, md5 in zip(_IDX_FILES, _FASHION_MD5, strict=True)
        ]
    paths = [_fetch(*file) for file in files]
    return _load_npz(paths[0]) if name == "mnist" else _load_idx(paths)


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
