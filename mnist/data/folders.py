"""Data sets in files: which files of a folder hold which part, and how the parts are read."""

import hashlib
import os
import re
from typing import NamedTuple

from mnist import Error
from mnist.data import readers
from mnist.data.classes import EMNIST_CLASSES, FASHION_CLASSES, name_classes
from mnist.data.dataset import Examples

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# SHA-256 of Fashion-MNIST's training labels, which identifies it in a folder of any name.
FASHION_LABELS_SHA256 = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
_EMNIST = re.compile(r"emnist-([a-z]+)-(?:train|test)-(?:images|labels)[-.]idx\d-ubyte(?:\.gz)?")
_KMNIST = re.compile(r"(.+)-(?:train|test)-(?:imgs|labels)\.npz")  # kmnist or k49


class Files(NamedTuple):
    """The arguments of `readers.read_images` and `readers.read_labels` for the four arrays of a data set."""

    train_images: tuple
    train_labels: tuple
    test_images: tuple
    test_labels: tuple
    emnist: str | None = None  # the split of EMNIST, whose images are transposed


def find(data_dir):
    """Finds the files of a data set.

    `data_dir` is an npz file or a folder. A folder holds an npz file of any name, the four IDX files of MNIST or
    EMNIST, or the four npz files of KMNIST.

    Returns: `Files`. Raises: `mnist.Error` if there is no data set, or more than one to choose from.
    """
    if not os.path.exists(data_dir):
        raise Error(f"--data_dir={data_dir} does not exist.")
    if not os.path.isdir(data_dir):
        return npz_files(data_dir)
    try:
        names = sorted(name for name in os.listdir(data_dir) if os.path.isfile(os.path.join(data_dir, name)))
    except OSError as error:
        raise Error(f"cannot read {data_dir}: {error.strerror or error}.") from None
    if "mnist.npz" in names:
        return npz_files(os.path.join(data_dir, "mnist.npz"))
    if all(_choose(file, names) for file in IDX_FILES):
        return _idx_files(data_dir, names, IDX_FILES)
    splits = sorted({match[1] for match in map(_EMNIST.fullmatch, names) if match})
    series = sorted({match[1] for match in map(_KMNIST.fullmatch, names) if match})
    single = [name for name in names if name.endswith(".npz") and not _KMNIST.fullmatch(name)]
    found = [*(f"emnist-{split}-*" for split in splits), *(f"{name}-*.npz" for name in series), *single]
    if len(found) > 1:
        shown = ", ".join(found[:5]) + ", ..." * (len(found) > 5)
        path = f", or as --data_dir={os.path.join(data_dir, single[0])}" if single else ""
        raise Error(f"--data_dir={data_dir} holds more than one data set, {shown}: name a folder with one{path}.")
    if splits:
        parts = [f"emnist-{splits[0]}-{file.replace('t10k', 'test')}" for file in IDX_FILES]
        return _idx_files(data_dir, names, parts)._replace(emnist=splits[0])
    if series:
        files = [f"{series[0]}-{part}-{kind}.npz" for part in ("train", "test") for kind in ("imgs", "labels")]
        if missing := [file for file in files if file not in names]:
            raise Error(f"--data_dir={data_dir} has no {missing[0]}.")
        return Files(*((os.path.join(data_dir, file), "arr_0") for file in files))
    if single:
        return npz_files(os.path.join(data_dir, single[0]))
    return _idx_files(data_dir, names, IDX_FILES)


def npz_files(path):
    """Returns the `Files` of an npz file as Keras publishes MNIST."""
    return Files(*((path, name) for name in readers.NPZ_NAMES))


def _idx_files(data_dir, names, files):
    found = [_choose(file, names) for file in files]
    if None in found:
        missing = files[found.index(None)]
        other = ", no mnist.npz and no other .npz" if not any(found) else ""
        raise Error(f"--data_dir={data_dir} has no {missing}[.gz]{other}.")
    return Files(*((os.path.join(data_dir, name),) for name in found))


def _choose(file, names):
    """Returns the first of an IDX file's possible names that is in the folder, or None."""
    wanted = [name + end for name in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((name for name in wanted if name in names), None)


def read(files, place, known=()):
    """Reads the data set of `Files`, with the arguments `place` and `known` of `name_classes`.

    Labels are checked before the images are read. Other names than `known` may come from the content.

    Returns: training and test `Examples`, and a tuple with the name of each class. Raises: `mnist.Error`.
    """
    labels = [readers.read_labels(*array) for array in (files.train_labels, files.test_labels)]
    if not all(map(len, labels)):
        raise Error(f"{place}: no {'test' if len(labels[0]) else 'training'} images at all.")
    if files.emnist:
        known = EMNIST_CLASSES.get(files.emnist, ())
        _count_from_zero(*labels, files.emnist, len(known), place)
    elif hashlib.sha256(labels[0]).hexdigest() == FASHION_LABELS_SHA256:
        known = FASHION_CLASSES
    classes = name_classes(*labels, place, known)
    images = [readers.read_images(*array) for array in (files.train_images, files.test_images)]
    for part, array, others in zip(("training", "test"), images, labels, strict=True):
        if len(array) != len(others):
            raise Error(f"{place}: {len(array):,} {part} images but {len(others):,} labels.")
        for start in range(0, len(array) if files.emnist else 0, 1000):  # in parts, which need little memory
            array[start : start + 1000] = array[start : start + 1000].swapaxes(1, 2).copy()
    return *map(Examples, images, labels), classes


def _count_from_zero(train_labels, test_labels, split, num_classes, place):
    """Subtracts 1 in place from labels of EMNIST that begin with 1, as in `letters`."""
    if train_labels.min() and (split == "letters" or train_labels.max() == num_classes):
        if not test_labels.min():
            raise Error(f"{place}: a test label is 0, but training labels begin with {train_labels.min()}.")
        train_labels -= 1
        test_labels -= 1
