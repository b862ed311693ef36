"""The sources of a data set: MNIST, Fashion-MNIST, scikit-learn's digits, or files in a folder."""

import hashlib
import os

from mnist import Error
from mnist.data import download, folders
from mnist.data.classes import DIGITS, FASHION_CLASSES
from mnist.data.dataset import Dataset, Examples, digest_of
from mnist.data.readers import SIDE
from mnist.settings import local_path

import numpy as np
from absl import logging

NAMES = ("auto", "mnist", "fashion_mnist", "digits")
# `Dataset.arrays_digest` of MNIST without a hold-out, which identifies MNIST in a folder of any name.
_MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"


def load(name="auto", data_dir=None, holdout=0):
    """Loads a data set.

    Args:
      name: one of `NAMES`. `auto` is MNIST, from `data_dir` or the network, and `digits` if neither has it.
      data_dir: a folder or a file for `folders.find`, with 28x28 images in 2 to 256 classes. A `classes.txt` in the
        folder names the classes. None: Keras' cache, filled by a download.
      holdout: an int. The number of images at the end of the training set that become the validation set.

    Returns: a `Dataset`. Raises: `mnist.Error` if the data are missing or damaged.
    """
    if data_dir:
        if name == "digits":
            raise Error("--dataset=digits comes with scikit-learn: leave out --data_dir.")
        data_dir = os.path.abspath(local_path(data_dir))
        train, test, classes = _read(name, folders.find(data_dir), data_dir)
        known = _recognize(train, test)
        if name in NAMES and name not in ("auto", known):
            if known:
                raise Error(f"--dataset={name}, but {data_dir} holds {known}: leave out --dataset, or name that one.")
            logging.warning("--dataset=%s, but %s holds other images or labels than are published.", name, data_dir)
        if name == "auto":
            folder = os.path.basename(data_dir)
            name = known or (data_dir if folder in NAMES else folder)
    elif name not in NAMES:
        raise Error(f"{name!r} is not one of {', '.join(NAMES)}. Give the folder of your own data set as data_dir.")
    else:
        name, (train, test, classes) = _load_named(name)
    dataset = Dataset(name, data_dir, train, test, test, classes)
    return dataset.hold_out(holdout) if holdout else dataset


def _load_named(name):
    """Returns the name of the data set that was found, and its training and test `Examples` with class names."""
    if name != "digits":
        known = "mnist" if name == "auto" else name
        try:
            files = download.fetch(known)
            return known, _read(known, files, files.train_images[0])
        except Error as error:
            if name != "auto":
                raise
            logging.warning("%s\nMNIST IS MISSING: TRAINING ON THE 1,797 DIGITS OF SCIKIT-LEARN INSTEAD.", error)
    return "digits", _load_digits()


def _read(name, files, place):
    return folders.read(files, place, FASHION_CLASSES if name == "fashion_mnist" else ())


def _recognize(train, test):
    """Returns which of `NAMES` some training and test `Examples` are, or None."""
    if hashlib.sha256(train.labels).hexdigest() == folders.FASHION_LABELS_SHA256:
        return "fashion_mnist"
    return "mnist" if digest_of([train, test]) == _MNIST_SHA256 else None


def _load_digits():
    """Loads the 1,797 digits of scikit-learn, 8x8 with 17 grey levels, and frames them as in MNIST."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros([len(digits.images), SIDE, SIDE, 1], np.uint8)
    for image, small in zip(images, digits.images, strict=True):
        scaled = Image.fromarray((small * (255 / 16)).astype(np.uint8)).resize((20, 20), Image.BICUBIC)
        image[4:24, 4:24, 0] = scaled
    labels = digits.target.astype(np.uint8)
    # The split is in order, because the writers of the last images did not write the first ones (scikit-learn,
    # "Recognizing hand-written digits").
    return Examples(images[:1500], labels[:1500]), Examples(images[1500:], labels[1500:]), DIGITS
