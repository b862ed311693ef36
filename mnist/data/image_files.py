"""Image files of any kind, read as digits without a run."""

import functools

from mnist.data.sources import load
from mnist.pictures import Look


def read_image(path, look=None):
    """Reads an image file as the training images of a run look.

    The picture may be grey, coloured or transparent, of any size, dark on light or light on dark.

    Args:
      path: the name of the file.
      look: a `pictures.Look`, as `finished.Run.look`. Default: the digits of scikit-learn, framed as in MNIST.

    Returns: uint8 `[28, 28, 1]`. Raises: `mnist.Error` if the file holds no readable image, no ink or several digits.
    """
    return read_digit(path, look)[0]


def read_digit(path, look=None):
    """Reads an image file. Returns: the result of `read_image`, and why it may not be one digit, as a str or None."""
    from mnist.pictures.readings import read_picture  # imports scipy.ndimage, which training does without

    best = read_picture(path, look or look_of_digits())[0]
    return best.image, best.doubt


@functools.cache
def look_of_digits():
    """Returns the `Look` of the digits of scikit-learn."""
    return Look.of(load("digits").train.images)
