"""The names of classes, known by the data set or read from a `classes.txt`."""

import os
import string

from mnist import Error
from mnist.data.readers import MAX_CLASSES

from absl import logging

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
# Hiragana in Latin letters, because few fonts hold it, in the order of kmnist_classmap.csv and k49_classmap.csv of
# http://codh.rois.ac.jp/kmnist. The last class of Kuzushiji-49 is the iteration mark.
KMNIST_CLASSES = {
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "k49": (
        *("a", "i", "u", "e", "o", "ka", "ki", "ku", "ke", "ko", "sa", "shi", "su", "se", "so"),
        *("ta", "chi", "tsu", "te", "to", "na", "ni", "nu", "ne", "no", "ha", "hi", "fu", "he", "ho"),
        *("ma", "mi", "mu", "me", "mo", "ya", "yu", "yo", "ra", "ri", "ru", "re", "ro"),
        *("wa", "wi", "we", "wo", "n", "repeat"),
    ),
}
_MAX_BYTES = 2**20  # characters of a classes.txt that are read


def name_classes(labels, place, known=()):
    """Returns a tuple with the name of each class, from label 0 to the largest training label.

    A `classes.txt` in the folder of the data, `place`, names the classes. Without one, the names are `known` if there
    are enough, or else the labels. A test set alone may lack images of the last classes.

    Args:
      labels: a dict from "train", "validation" and "test", or some of them, to uint8 `[N]`, N >= 1.
      place: a str. The folder, or a file in it.
      known: a tuple of strings.

    Raises: `mnist.Error` if there are fewer than 2 classes, or if other labels or names do not fit the training labels.
    """
    has_train = "train" in labels
    first = labels["train" if has_train else "test"]
    last = int(first.max())
    if has_train and first.min() == last:
        raise Error(f"{place}: all training labels are {last}, expected 2 to {MAX_CLASSES} classes.")
    for part, others in labels.items():
        if others.max() > last:
            raise Error(f"{place}: a {part} label is {others.max()}, expected 0 to {last} as in training.")
    path = os.path.join(place if os.path.isdir(place) else os.path.dirname(place), "classes.txt")
    if not os.path.isfile(path):
        return tuple(known[: last + 1]) if last < len(known) else tuple(map(str, range(last + 1)))
    names = _read_names(path)
    if len(names) != last + 1 and (has_train or len(names) <= last):
        hint = " The first label must be 0." if first.min() and len(names) == last else ""
        raise Error(f"{path} names {len(names):,} classes, expected {last + 1}: the labels are 0 to {last}.{hint}")
    return names


def check_same_classes(names, others, place, other_place, may_differ=False):
    """Checks that two data sets name each label alike, so that a model of one can answer for the other.

    Args:
      names, others: tuples of strings. The names of the classes of both data sets.
      place, other_place: strings. What has these names, for the message.
      may_differ: a bool. Whether other names are allowed, as a model that is trained further may learn them.

    Numbers, as for classes without names, may stand for names in words, with a warning. No name may have another label.

    Raises: `mnist.Error` with the first name that differs.
    """
    labels = {name: label for label, name in enumerate(others)}
    for label, name in enumerate(names):
        if (other := labels.get(name, label)) != label:
            found = f"class {name!r} has label {label} in {place}, but label {other} in {other_place}"
            raise Error(f"{found}: give both the same order of classes.")
    numbered = [classes == tuple(map(str, range(len(classes)))) for classes in (names, others)]
    are_digits = all(name.isdecimal() for name in (*names, *others))
    if any(numbered) and not all(numbered) and not are_digits:
        unnamed, named = (place, other_place) if numbered[0] else (other_place, place)
        name = (others if numbered[0] else names)[0]
        logging.warning("%s names no classes: its label 0 is taken for %r of %s, and so on.", unnamed, name, named)
        return
    if may_differ:
        return
    for label, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise Error(
                f"label {label} is {name!r} in {place}, but {other!r} in {other_place}: they are other classes."
            )


def _read_names(path):
    """Reads names, one a line in UTF-8, in the order of the labels. More bytes than `_MAX_BYTES` are not read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file.read(_MAX_BYTES).rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"cannot read {path}: {error}.") from None
    for number, name in enumerate(names[: MAX_CLASSES + 1], 1):
        if not name or not name.isprintable() or name in names[: number - 1] or number > MAX_CLASSES:
            expected = f"at most {MAX_CLASSES} different names of classes, one a line"
            raise Error(f"{path}: line {number} is {name!r:.50}, expected {expected}.")
    return tuple(names)
