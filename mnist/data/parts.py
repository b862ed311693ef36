"""Reads the parts of a data set that `folders.find` found, and names its classes."""

import hashlib

from mnist import Error
from mnist.data import folders
from mnist.data.classes import FASHION_CLASSES, check_same_classes, name_classes
from mnist.data.dataset import Examples
from mnist.data.readers import as_images, as_labels

import numpy as np

_WORDS = {"train": "training", "validation": "validation", "test": "test"}
_HINTS = {
    "train": ", so that only mnist.evaluate takes it",
    "test": ". Add its files, or keep some of the training images for it",
}


def read(found, needed=("train", "test"), known=()):
    """Reads a data set.

    Args:
      found: a `folders.Found`.
      needed: the names, out of `folders.PARTS`, without which it is refused.
      known: names of classes, if neither the files nor their content give other ones.

    Returns: training, validation and test `Examples`, and a tuple with the name of each class. A missing training set
      is None. The test set stands for a missing validation set. Raises: `mnist.Error`.
    """
    for part in needed:
        if part not in found.sources:
            raise Error(f"{found.place} has no {_WORDS[part]} set{_HINTS[part]}.")
    arrays = {part: _read_part(found, part) for part in folders.PARTS if part in found.sources}
    labels = {part: labels for part, (_, labels) in arrays.items()}
    known = found.known or known
    if found.emnist:
        _count_from_zero(labels, found.emnist, len(known), found.place)
    elif "train" in labels and hashlib.sha256(labels["train"]).hexdigest() == folders.FASHION_LABELS_SHA256:
        known = FASHION_CLASSES
    classes = name_classes(labels, found.place, known)
    if found.by_name:
        is_named = not all(name.isdecimal() for name in found.known)
        check_same_classes(classes, found.known, "classes.txt", "the order of the folders", may_differ=not is_named)
    for images, _ in arrays.values():
        for start in range(0, len(images) if found.emnist else 0, 1000):  # in parts, which need little memory
            images[start : start + 1000] = images[start : start + 1000].swapaxes(1, 2).copy()
    examples = {part: Examples(*pair) for part, pair in arrays.items()}
    test = examples["test"]
    return examples.get("train"), examples.get("validation", test), test, classes


def _read_part(found, part):
    """Returns images, uint8 `[N, 28, 28, 1]`, and labels, uint8 `[N]`, of one part."""
    sources = found.sources[part]
    if "both" in sources:
        images, labels = sources["both"]()
    else:
        for what, other in (("images", "labels"), ("labels", "images")):
            if other not in sources:
                raise Error(f"{': '.join(sources[what].args)} has no {_WORDS[part]} {other} beside it.")
        labels = as_labels(sources["labels"](), ": ".join(sources["labels"].args))
        images = np.ascontiguousarray(as_images(sources["images"](), ": ".join(sources["images"].args)))
    if not len(images) or not len(labels):
        raise Error(f"{found.place}: no {_WORDS[part]} images at all.")
    if len(images) != len(labels):
        raise Error(f"{found.place}: {len(images):,} {_WORDS[part]} images but {len(labels):,} labels.")
    return images, labels


def _count_from_zero(labels, split, num_classes, place):
    """Subtracts 1 in place from labels of EMNIST that begin with 1, as in `letters`."""
    first = labels["train" if "train" in labels else "test"]
    if first.min() and (split == "letters" or first.max() == num_classes):
        for part, others in labels.items():
            if not others.min():
                raise Error(f"{place}: a {_WORDS[part]} label is 0, but training labels begin with {first.min()}.")
        for others in labels.values():
            others -= 1
