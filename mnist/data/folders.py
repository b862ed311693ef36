"""Which files of a folder hold which part of a data set, and the names of its classes."""

import os
import re
import string
from typing import NamedTuple

from mnist import Error
from mnist.data.readers import DIGITS, MAX_CLASSES, NPZ_NAMES

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Cohen et al., "EMNIST: an extension of MNIST to handwritten letters" (arXiv:1702.05373): what is written alike in
# upper and lower case is one class, in `letters` all are.
_BOTH_CASES = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")
EMNIST_CLASSES = {
    "balanced": _BOTH_CASES,
    "bymerge": _BOTH_CASES,
    "byclass": (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
    "letters": tuple(string.ascii_uppercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
_EMNIST = re.compile(r"emnist-([a-z]+)-(?:train|test)-(?:images|labels)[-.]idx\d-ubyte(?:\.gz)?")
_KMNIST = re.compile(r"(.+)-(?:train|test)-(?:imgs|labels)\.npz")  # kmnist or k49
_MAX_BYTES = 2**20  # of a classes.txt


class Array(NamedTuple):
    """Where images or labels are: in an IDX file, or in an npz file by a name."""

    path: str
    name: str | None = None


class Files(NamedTuple):
    """What a data set is read from."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    emnist: str | None = None  # its split; the images are then transposed


def find(data_dir):
    """Finds the files of a data set.

    Args:
      data_dir: a folder with an `mnist.npz`, with MNIST's four IDX files, with those of one split of EMNIST, with the
        four npz files of KMNIST, or with one npz file of any name; or the path of an npz file.

    Returns: `Files`. Raises: `mnist.Error` if there is no data set, or more than one to choose from.
    """
    if not os.path.exists(data_dir):
        raise Error(f"--data_dir={data_dir} does not exist.")
    if not os.path.isdir(data_dir):
        return _npz(data_dir)
    try:
        names = sorted(name for name in os.listdir(data_dir) if os.path.isfile(os.path.join(data_dir, name)))
    except OSError as error:
        raise Error(f"cannot read {data_dir}: {error.strerror or error}.") from None
    if "mnist.npz" in names:
        return _npz(os.path.join(data_dir, "mnist.npz"))
    if all(_choose(file, names) for file in IDX_FILES):
        return _idx(data_dir, names, IDX_FILES)
    splits = sorted({match[1] for match in map(_EMNIST.fullmatch, names) if match})
    series = sorted({match[1] for match in map(_KMNIST.fullmatch, names) if match})
    single = [name for name in names if name.endswith(".npz") and not _KMNIST.fullmatch(name)]
    found = [*(f"emnist-{split}-*" for split in splits), *(f"{name}-*.npz" for name in series), *single]
    if len(found) > 1:
        shown = ", ".join(found[:5]) + ", ..." * (len(found) > 5)
        path = f", or as --data_dir={os.path.join(data_dir, single[0])}" if single else ""
        raise Error(f"--data_dir={data_dir} holds more than one data set, {shown}: name a folder with one{path}.")
    if splits:
        parts = [file.replace("t10k", "test") for file in IDX_FILES]
        return _idx(data_dir, names, [f"emnist-{splits[0]}-{part}" for part in parts])._replace(emnist=splits[0])
    if series:
        files = [f"{series[0]}-{part}-{kind}.npz" for part in ("train", "test") for kind in ("imgs", "labels")]
        if missing := [file for file in files if file not in names]:
            raise Error(f"--data_dir={data_dir} has no {missing[0]}.")
        return Files(*(Array(os.path.join(data_dir, file), "arr_0") for file in files))
    if single:
        return _npz(os.path.join(data_dir, single[0]))
    return _idx(data_dir, names, IDX_FILES)


def _npz(path):
    return Files(*(Array(path, name) for name in NPZ_NAMES))


def _idx(data_dir, names, files):
    found = [_choose(file, names) for file in files]
    if None in found:
        missing = files[found.index(None)]
        other = ", nor an mnist.npz or another .npz" if not any(found) else ""
        raise Error(f"--data_dir={data_dir} has no {missing}[.gz]{other}.")
    return Files(*(Array(os.path.join(data_dir, name)) for name in found))


def _choose(file, names):
    """The name under which an IDX file is there, None if it is not."""
    wanted = [name + end for name in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((name for name in wanted if name in names), None)


def read_classes(path):
    """Reads names of classes, one a line in UTF-8, in the order of the labels.

    Returns: a tuple of str, None if there is no such file. Raises: `mnist.Error` if it is not sound.
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        names = [line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not UTF-8 (byte {error.start}): expected the name of a class on each line.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    if len(content) > _MAX_BYTES:
        raise Error(f"{path} has more than {_MAX_BYTES:,} bytes: expected the name of a class on each line.")
    if len(names) > MAX_CLASSES:
        raise Error(f"{path} names {len(names):,} classes, at most {MAX_CLASSES:,} are taken.")
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable():
            found = "holds what cannot be printed" if name else "is empty"
            raise Error(f"{path}: line {number} {found}, expected the name of class {number - 1}.")
        if name in names[: number - 1]:
            raise Error(f"{path}: lines {names.index(name) + 1} and {number} are both {name!r:.50}.")
    return tuple(names)
