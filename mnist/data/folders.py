"""Finds the data set in a folder: which files hold which part, and the reader of each."""

import functools
import hashlib
import os
import re
import struct
import zlib
from typing import NamedTuple

from mnist import Error
from mnist.data import class_folders, csv_files, idx, npy
from mnist.data.classes import EMNIST_CLASSES, KMNIST_CLASSES
from mnist.data.other_formats import advice_for
from mnist.data.readers import list_some, reading

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# SHA-256 of Fashion-MNIST's training labels, which identifies it in a folder of any name.
FASHION_LABELS_SHA256 = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
# SHA-256 of KMNIST's packed training labels, as TensorFlow Datasets lists it. Kuzushiji-49 is not published as IDX.
KMNIST_LABELS_GZ_SHA256 = "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"
PARTS = ("train", "validation", "test")
_PART_OF = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test"}
_PART_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
_IMAGES, _LABELS = ("x", "images", "image", "imgs", "data"), ("y", "labels", "label", "targets", "target")
# The part and the kind of an array with a usual name, as x_train of Keras, train_images of MedMNIST, trainX or X_test.
_ARRAYS = {
    sep.join(words): (part, "images" if what in _IMAGES else "labels")
    for name, part in _PART_OF.items()
    for what in (*_IMAGES, *_LABELS)
    for words in ((name, what), (what, name))
    for sep in ("_", "-", "")
}
_IDX = re.compile(r"(?:(emnist-[a-z]+)-)?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?", re.IGNORECASE)
_KMNIST = re.compile(r"(.+)-(train|test)-(imgs|labels)\.npz", re.IGNORECASE)  # kmnist or k49
_CSV = re.compile(rf"(?:(.+)[-_])?({'|'.join(_PART_OF)})\.csv(?:\.gz)?", re.IGNORECASE)
_EXPECTED = (
    "IDX files of MNIST or EMNIST, npz files of KMNIST, one npz file with x_train, y_train, x_test and y_test, npy "
    "files of such names, train.csv and test.csv of a label and 784 grey levels, or images in train/CLASS/ and "
    "test/CLASS/"
)


class Found(NamedTuple):
    """A data set that was found but not read.

    Attributes:
      title: its files in words, for messages.
      place: the file or folder, beside or in which a classes.txt names the classes.
      sources: a dict from each of `PARTS` that was found to a dict with functions without arguments. `images` and
        `labels` each return one array. `both` returns two.
      known: a tuple with the names of classes as the names of files or folders give them, or ().
      emnist: a str. The split of EMNIST, whose images are transposed and whose labels may begin with 1. None: others.
      by_name: a bool. Whether labels are positions in `known`, because they have no other meaning.
    """

    title: str
    place: str
    sources: dict
    known: tuple = ()
    emnist: str | None = None
    by_name: bool = False


def find(data_dir):
    """Finds the data set in a folder or a file. A folder that holds nothing but one folder stands for that one.

    Returns: a `Found`. Raises: `mnist.Error` if there is no data set, or more than one to choose from.
    """
    if not os.path.exists(data_dir):
        raise Error(f"--data_dir={data_dir} does not exist.")
    if not os.path.isdir(data_dir):
        return _find_file(data_dir)
    folder = data_dir
    folders, files = class_folders.visible(folder)
    while len(folders) == 1 and not files and folders[0].lower() not in _PART_OF:
        folder = os.path.join(folder, folders[0])
        folders, files = class_folders.visible(folder)
    sound = [name for name in files if os.path.isfile(os.path.join(folder, name))]  # reading a pipe may never end
    found = [*_sets_of_files(folder, sound), *_sets_of_classes(folder, folders)]
    npz = [name for name in sound if name.lower().endswith(".npz") and not _KMNIST.fullmatch(name)]
    if len(npz) + len(found) > 1:  # features.npz beside a data set is not another one
        npz = [name for name in npz if _holds_parts(os.path.join(folder, name))]
    if len(npz) + len(found) > 1:
        titles = list_some([*(each.title for each in found), *npz])
        path = f", or as --data_dir={os.path.join(folder, npz[0])}" if npz else ""
        raise Error(f"--data_dir={folder} holds more than one data set, {titles}: name a folder with one{path}.")
    if npz:
        return npz_file(os.path.join(folder, npz[0]))
    if found:
        return found[0]
    raise Error(f"--data_dir={folder}: {_describe(folder, folders, files)}")


def _find_file(path):
    folder, name = os.path.split(path)
    if found := _sets_of_files(folder, [name]):
        if any("both" not in arrays for arrays in found[0].sources.values()):
            raise Error(f"--data_dir={path} is one array of a data set: name the folder of its files.")
        return found[0]._replace(place=path)
    if advice := advice_for([name]):
        raise Error(f"--data_dir={path}: {advice}")
    return npz_file(path)


def _describe(folder, folders, files):
    """Returns why a folder holds no data set, as one sentence or two."""
    if advice := advice_for(files):
        return advice
    if len(classes := class_folders.find_classes(folder)) > 1:
        return (
            f"it holds the classes {list_some(classes)} without a test set. Move these folders into a folder train, "
            "and some images of each class into a folder test, as test/CLASS/. For mnist.evaluate test is enough."
        )
    return f"it holds {list_some([*folders, *files]) or 'nothing'}, expected {_EXPECTED}."


def npz_file(path):
    """Returns the `Found` of one npz file, whose arrays have the usual names. Raises: `mnist.Error` for other names."""
    sources, names = {}, npy.names_in(path)
    for name in names:
        if name.lower() in _ARRAYS:
            part, what = _ARRAYS[name.lower()]
            other = sources.setdefault(part, {}).setdefault(what, functools.partial(npy.read_npz, path, name))
            if other.args[1] != name:
                raise Error(f"{path} holds both {other.args[1]} and {name}, expected one of them.")
    if not sources:
        expected = "x_train, y_train, x_test and y_test, or train_images, train_labels and so on"
        raise Error(f"{path} holds {list_some(names) or 'no arrays'}, expected the arrays {expected}.")
    return Found(os.path.basename(path), path, sources)


def idx_files(paths, place):
    """Returns the `Found` of four files in the order of `IDX_FILES`."""
    sources = {}
    for file, path in zip(IDX_FILES, paths, strict=True):
        _, part, what = _IDX.fullmatch(file).groups()
        sources.setdefault(_PART_OF[part], {})[what] = functools.partial(idx.read, path, what)
    return Found("*-ubyte", place, sources)


def _holds_parts(path):
    try:
        return any(name.lower() in _ARRAYS for name in npy.names_in(path))
    except Error:
        return True  # a damaged file may have been a data set


def _sets_of_files(folder, names):
    """Returns a list with the `Found` of each data set whose arrays are in files of their own."""
    sets = {}
    for name in names:
        if located := _locate(folder, name):
            title, group, part, what, read = located
            found = sets.setdefault(title, Found(title, folder, {}, **_meaning(group)))
            other = found.sources.setdefault(part, {}).setdefault(what, read)
            if other is not read and _checksum(other.args[0]) != _checksum(read.args[0]):
                both = f"{os.path.basename(other.args[0])} and {name}"
                raise Error(f"--data_dir={folder} holds {both}, whose content is different: remove one.")
            if part == "train" and what == "labels" and not group and _holds_kmnist(os.path.join(folder, name)):
                sets[title] = found._replace(known=KMNIST_CLASSES["kmnist"])
    return list(sets.values())


def _locate(folder, name):
    """Returns what a file of a usual name holds: title and prefix of the data set, part, kind, reader. Else None."""
    path = os.path.join(folder, name)
    if match := _IDX.fullmatch(name):
        group, part, what = match.groups()
        title = f"{group}-*" if group else "*-ubyte"
        return title, group, _PART_OF[part.lower()], what.lower(), functools.partial(idx.read, path, what.lower())
    if match := _KMNIST.fullmatch(name):
        group, part, what = match.groups()
        what = "labels" if what.lower() == "labels" else "images"
        return f"{group}-*.npz", group, _PART_OF[part.lower()], what, functools.partial(npy.read_npz, path, "arr_0")
    if name.lower().endswith(".npy") and (array := _ARRAYS.get(name[:-4].lower())):
        return "*.npy", None, *array, functools.partial(npy.read_npy, path)
    if (match := _CSV.fullmatch(name)) and csv_files.has_images(path):
        group, part = match.groups()
        title = f"{group or ''}*.csv"
        return title, group, _PART_OF[part.lower()], "both", functools.partial(csv_files.read, path)
    return None


def _meaning(group):
    """Returns what the prefix of file names adds to a `Found`, a dict."""
    known, split = (group or "").lower(), (group or "").lower().removeprefix("emnist-")
    if known != split:
        return {"known": EMNIST_CLASSES.get(split, ()), "emnist": split}
    return {"known": KMNIST_CLASSES.get(known, ())}


def _holds_kmnist(path):
    """Returns whether a file holds the training labels of KMNIST, packed as published."""
    with reading(path, "a file of labels"), open(path, "rb") as file:
        return hashlib.sha256(file.read(2**20)).hexdigest() == KMNIST_LABELS_GZ_SHA256


def _checksum(path):
    """Returns CRC-32 and size of the content of a file. A gzip file ends with both of what it holds."""
    with reading(path, "a gzip file"), open(path, "rb") as file:
        if path.lower().endswith(".gz"):
            file.seek(-8, os.SEEK_END)
            return struct.unpack("<II", file.read())
        checksum = 0
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
        return checksum, file.tell() % 2**32


def _sets_of_classes(folder, folders):
    """Returns a list with the `Found` of folders like train/CLASS/, or []."""
    parts = {}
    for name in folders:
        if part := _PART_OF.get(name.lower()):
            path = os.path.join(folder, name)
            if classes := class_folders.find_classes(path):
                if part in parts:
                    raise Error(f"--data_dir={folder} holds {parts[part][0]} and {path}, expected one of them.")
                parts[part] = path, classes
    if not parts:
        return []
    classes = parts["train" if "train" in parts else "test" if "test" in parts else "validation"][1]
    sources = {
        part: {"both": functools.partial(class_folders.read, path, classes)} for part, (path, _) in parts.items()
    }
    return [Found("folders of classes", folder, sources, classes, by_name=True)]
