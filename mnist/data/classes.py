"""The names of classes, known by the data set or read from a `classes.txt`."""

import os
import string

from mnist import Error
from mnist.data.readers import MAX_CLASSES

NUM_CLASSES = 10  # number of classes of MNIST
DIGITS = tuple(map(str, range(NUM_CLASSES)))  # their names
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# EMNIST merges letters whose upper and lower case look alike, and all letters in its split `letters`
# (Cohen et al., arXiv:1702.05373).
_BOTH_CASES = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")
EMNIST_CLASSES = {
    "balanced": _BOTH_CASES,
    "bymerge": _BOTH_CASES,
    "byclass": (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
    "letters": tuple(string.ascii_uppercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
_MAX_BYTES = 2**20  # largest classes.txt


def name_classes(train_labels, test_labels, place, known=()):
    """Returns a tuple with the name of each class, from label 0 to the largest training label.

    Args:
      train_labels: uint8 `[N]`, N >= 1.
      test_labels: uint8 `[M]`, M >= 1.
      place: a str. The folder or file of the data. A `classes.txt` in the same folder names the classes.
      known: a tuple of str. Names to use without a `classes.txt`, if there are enough. Default: the labels.

    Raises: `mnist.Error` if there are fewer than 2 classes, or if test labels or names do not fit the training labels.
    """
    last = int(train_labels.max())
    if train_labels.min() == last:
        raise Error(f"{place}: all training labels are {last}, expected 2 to {MAX_CLASSES} classes.")
    if test_labels.max() > last:
        raise Error(f"{place}: a test label is {test_labels.max()}, expected 0 to {last} as in training.")
    path = os.path.join(place if os.path.isdir(place) else os.path.dirname(place), "classes.txt")
    if not os.path.isfile(path):
        return tuple(known[: last + 1]) if last < len(known) else tuple(map(str, range(last + 1)))
    names = _read_names(path)
    if len(names) != last + 1:
        hint = " The first label must be 0." if train_labels.min() and len(names) == last else ""
        raise Error(f"{path} names {len(names):,} classes, expected {last + 1}: the labels are 0 to {last}.{hint}")
    return names


def _read_names(path):
    """Reads names, one a line in UTF-8, in the order of the labels."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        names = [line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not UTF-8 (byte {error.start}), expected the name of a class on each line.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    if len(content) > _MAX_BYTES or len(names) > MAX_CLASSES:
        found = f"more than {_MAX_BYTES:,} bytes" if len(content) > _MAX_BYTES else f"{len(names):,} lines"
        raise Error(f"{path} has {found}, expected at most {MAX_CLASSES} names of classes, one a line.")
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable():
            found = "cannot be printed" if name else "is empty"
            raise Error(f"{path}: line {number} {found}, expected the name of class {number - 1}.")
        if name in names[: number - 1]:
            raise Error(f"{path}: lines {names.index(name) + 1} and {number} are both {name!r:.50}.")
    return tuple(names)
