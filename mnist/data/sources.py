"""The sources of a data set: MNIST, Fashion-MNIST, scikit-learn's digits, or files in a folder."""

import hashlib
import os

from mnist import Error
from mnist.data import download, folders, parts
from mnist.data.classes import DIGITS, FASHION_CLASSES
from mnist.data.dataset import Dataset, Examples, TestSet, digest_of
from mnist.data.readers import SIDE
from mnist.settings import local_path

import numpy as np
from absl import logging

NAMES = ("auto", "mnist", "fashion_mnist", "digits")
# `Dataset.arrays_digest` of MNIST without a hold-out, which identifies MNIST in a folder of any name.
_MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"


def load(name="auto", data_dir=None, holdout=0, holdout_by="end"):
    """Loads a data set.

    Args:
      name: one of `NAMES`. `auto` is MNIST, from `data_dir` or the network, and `digits` if neither has it.
      data_dir: a folder or a file for `folders.find`, with 28x28 images in 2 to 256 classes. A `classes.txt` in the
        folder names the classes. None: Keras' cache, filled by a download.
      holdout: an int. The number of training images that become the validation set.
      holdout_by: one of `HOLDOUTS`, which images these are, see `Dataset.hold_out`.

    Returns: a `Dataset`. Raises: `mnist.Error` if the data are missing or damaged.
    """
    if holdout_by != "end" and not holdout:
        raise Error(f"--holdout_by={holdout_by} needs the number of images to hold out: give --holdout, too.")
    if data_dir:
        if name == "digits":
            raise Error("--dataset=digits comes with scikit-learn: leave out --data_dir.")
        data_dir = os.path.abspath(local_path(data_dir))
        train, validation, test, classes = _read(name, folders.find(data_dir))
        known = _recognize(train, test) if validation is test else None
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
        name, (train, validation, test, classes) = _load_named(name)
    dataset = Dataset(name, data_dir, train, validation, test, classes)
    return dataset.hold_out(holdout, holdout_by) if holdout else dataset


def load_test(name="auto", data_dir=None, classes=()):
    """Loads data to evaluate a model on, with the arguments of `load`. A folder may hold a test set alone.

    The folders of such a test set, test/CLASS/, have the labels that their names have in `classes`. Numbers are labels
    themselves if no name of a class is a number.

    Args:
      classes: a tuple of strings. The names of the classes of the model.

    Returns: a `Dataset`, or a `TestSet` if there are no training images. Raises: `mnist.Error`, also for a folder
      test/CLASS/ that is not in `classes`.
    """
    found = data_dir and folders.find(os.path.abspath(local_path(data_dir)))
    if not found or "train" in found.sources or name == "digits":
        return load(name, data_dir)
    _, _, test, names = _read(name, found, ("test",))
    if found.by_name:
        labels = {name: label for label, name in enumerate(classes)}
        if not any(name.isdecimal() for name in classes):  # otherwise a number is the name of a class
            labels |= {str(label): label for label in range(len(classes))}
        if unknown := [name for name in names if name not in labels]:
            raise Error(f"{found.place} has the class {unknown[0]!r:.50}, which the model does not have.")
        test, names = Examples(test.images, np.array([labels[name] for name in names])[test.labels]), classes
    return TestSet(os.path.basename(os.path.abspath(data_dir)), test, names)


def _load_named(name):
    """Returns the name of the data set that was found, and what `parts.read` returns."""
    if name != "digits":
        known = "mnist" if name == "auto" else name
        try:
            return known, _read(known, download.fetch(known))
        except Error as error:
            if name != "auto":
                raise
            logging.warning("%s\nMNIST IS MISSING: TRAINING ON THE 1,797 DIGITS OF SCIKIT-LEARN INSTEAD.", error)
    return "digits", _load_digits()


def _read(name, found, needed=("train", "test")):
    return parts.read(found, needed, FASHION_CLASSES if name == "fashion_mnist" else ())


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
    train, test = Examples(images[:1500], labels[:1500]), Examples(images[1500:], labels[1500:])
    return train, test, test, DIGITS
