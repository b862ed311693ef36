"""A data set in memory, and the digest that identifies its content."""

import hashlib
import json
from typing import NamedTuple

from mnist import Error
from mnist.data.classes import DIGITS
from mnist.data.readers import SIDE, as_images, as_labels, empty_aligned

import numpy as np

HOLDOUTS = ("end", "class")  # where a hold-out takes its images


class _Examples(NamedTuple):
    images: np.ndarray  # uint8 [N, 28, 28, 1]
    labels: np.ndarray  # uint8 [N], counted from 0


class Examples(_Examples):
    """Images with their labels.

    Args:
      images: `[N, 28, 28, 1]` or another form of grey levels that `readers.as_images` takes, N >= 1.
      labels: integers `[N]` from 0 to 255, or another form that `readers.as_labels` takes.

    Raises: `mnist.Error` for other shapes, types or labels.
    """

    __slots__ = ()

    def __new__(cls, images, labels):
        images, labels = as_images(np.asarray(images), "the images"), as_labels(np.asarray(labels), "the labels")
        if len(images) != len(labels) or not len(labels):
            raise Error(f"there are {len(images):,} images and {len(labels):,} labels, expected as many, at least one.")
        return super().__new__(cls, images, labels)

    @classmethod
    def _make(cls, values):  # `_replace` calls it
        return cls(*values)

    def digest(self):
        """Returns the SHA-256 of images and labels, as hex."""
        return digest_of([self])


class _Dataset(NamedTuple):
    name: str
    data_dir: str | None  # absolute, so that load(name, data_dir) loads the same data again
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...] = DIGITS  # the name of each label


class Dataset(_Dataset):
    """A data set in three parts. Without validation images of its own, `validation` and `test` are the same object.

    Raises: `mnist.Error` for a part that is not `Examples`, or for a label without a class.
    """

    __slots__ = ()

    def __new__(cls, name, data_dir, train, validation, test, classes=DIGITS):
        for part, examples in (("train", train), ("validation", validation), ("test", test)):
            if not isinstance(examples, Examples):
                raise Error(
                    f"{part} of the data set is a {type(examples).__name__}, expected Examples(images, labels)."
                )
            if (last := examples.labels.max()) >= len(classes):
                raise Error(f"{part} of {name} has labels up to {last}, expected 0 to {len(classes) - 1}, one a class.")
        return super().__new__(cls, name, data_dir, train, validation, test, tuple(classes))

    @classmethod
    def _make(cls, values):  # `_replace` calls it
        return cls(*values)

    def hold_out(self, count, by="end"):
        """Returns the data set with `count` training images as its validation set.

        Both parts keep the order of the training set.

        Args:
          count: an int from 1 to the number of training images - 1.
          by: one of `HOLDOUTS`. "end" holds out the last images. "class" holds out the last images of each class, in
            proportion to the images of the class. Its training set is a copy.

        Raises: `mnist.Error`.
        """
        images, labels = self.train
        if self.validation is not self.test:
            own = f"{self.name} has {len(self.validation.labels):,} validation images of its own"
            raise Error(f"--holdout={count} has no use, because {own}: leave it out.")
        if count >= len(labels):
            raise Error(f"--holdout={count} leaves none of {len(labels):,} training images: take fewer.")
        if by not in HOLDOUTS:
            raise Error(f"--holdout_by={by}: expected one of {', '.join(HOLDOUTS)}.")
        if by == "class":
            is_held = _is_held(labels, count)
            return self._replace(train=_choose(self.train, ~is_held), validation=_choose(self.train, is_held))
        first, last = Examples(images[:-count], labels[:-count]), Examples(images[-count:], labels[-count:])
        return self._replace(train=first, validation=last)

    def digest(self):
        """Returns the SHA-256 of images, labels and class names, as hex. It identifies the data under any name."""
        return identify(self.arrays_digest(), self.classes)

    def arrays_digest(self):
        """Returns the SHA-256 of all images and labels, as hex."""
        return digest_of([self.train, self.validation] + ([] if self.test is self.validation else [self.test]))

    def read_only(self):
        """Returns the data set for code of the user, whose writes to its arrays NumPy refuses."""
        train, validation = (Examples(*map(read_only, part)) for part in (self.train, self.validation))
        test = validation if self.test is self.validation else Examples(*map(read_only, self.test))
        return self._replace(train=train, validation=validation, test=test)


class TestSet(NamedTuple):
    """A test set alone, for a model that was trained on other data."""

    name: str
    test: Examples
    classes: tuple[str, ...]  # the name of each label


def _is_held(labels, count):
    """Returns which `count` images a hold-out by class holds out, bool `[N]`, for labels `[N]`.

    Image k of n images of a class, counted from 0 at its last one, has the place (k + 1/2) / n. The lowest places are
    held out, which is Sainte-Laguë's method to divide seats in proportion.
    """
    order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
    by_class = labels[order]
    places = (np.cumsum(sizes)[by_class] - np.arange(len(labels)) - 0.5) / sizes[by_class]
    is_held = np.zeros(len(labels), bool)
    is_held[order[np.argsort(places, kind="stable")[:count]]] = True
    return is_held


def _choose(examples, is_chosen):
    """Returns the `Examples` that a mask `[N]` chooses, aligned so that TensorFlow shares their memory."""
    images = empty_aligned(int(is_chosen.sum()) * SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
    np.compress(is_chosen, examples.images, axis=0, out=images)
    return Examples(images, examples.labels[is_chosen])


def read_only(array):
    """Returns a view of an array to which NumPy refuses to write."""
    view = array.view()
    view.flags.writeable = False
    return view


def identify(arrays_digest, classes):
    """Returns the digest of a data set, given the digest of its arrays and the names of its classes."""
    return hashlib.sha256(json.dumps([arrays_digest, classes]).encode()).hexdigest()


def digest_of(parts):
    sha256 = hashlib.sha256()
    for examples in parts:
        for array in examples:
            sha256.update(np.ascontiguousarray(array))
    return sha256.hexdigest()
