"""A data set in memory, and the digest that identifies its content."""

import hashlib
from typing import NamedTuple

from mnist.data.classes import DIGITS
from mnist.data.readers import SIDE

import numpy as np

BOX = 20  # MNIST's digits fill a box of 20x20 within 28x28 (LeCun et al. 1998, p. 10)


class Examples(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # uint8 [N, 28, 28, 1]
    labels: np.ndarray  # uint8 [N], counted from 0

    def digest(self):
        """Returns the SHA-256 of images and labels, as hex."""
        return _digest([self])


class Dataset(NamedTuple):
    """A data set in three parts. Without a hold-out, `validation` and `test` are the same object."""

    name: str
    data_dir: str | None  # absolute, so that load(name, data_dir) loads the same data again
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...] = DIGITS  # the name of each label

    def digest(self):
        """Returns the SHA-256 of all images and labels, as hex. It identifies the content, whatever the name."""
        return _digest([self.train, self.validation] + ([] if self.test is self.validation else [self.test]))

    def read_only(self):
        """Returns the data set for code of the user, whose writes to its arrays NumPy refuses."""
        train, validation = (Examples(*map(read_only, part)) for part in (self.train, self.validation))
        test = validation if self.test is self.validation else Examples(*map(read_only, self.test))
        return self._replace(train=train, validation=validation, test=test)

    def is_framed(self):
        """Returns whether the training images are framed as in MNIST.

        Nine in ten of the first 1,000 images must be framed, because some may be blank.
        """
        return bool(np.mean(is_framed(self.train.images[:1000, ..., 0])) > 0.9)


def read_only(array):
    """Returns a view of an array to which NumPy refuses to write."""
    view = array.view()
    view.flags.writeable = False
    return view


def _digest(parts):
    sha256 = hashlib.sha256()
    for examples in parts:
        for array in examples:
            sha256.update(np.ascontiguousarray(array))
    return sha256.hexdigest()


def is_framed(images):
    """Returns whether images are framed as in MNIST: bright on black, 19 or 20 pixels in the longer direction.

    Args:
      images: grey levels `[..., 28, 28]` from 0 to 255.

    Returns: bool `[...]`.
    """
    ink = images != 0
    ends = [(np.argmax(inked, -1), np.argmax(inked[..., ::-1], -1)) for inked in (ink.any(-1), ink.any(-2))]
    sides = [SIDE - before - after for before, after in ends]
    return (images.max((-2, -1)) >= 128) & np.isin(np.maximum(*sides), (BOX - 1, BOX))
