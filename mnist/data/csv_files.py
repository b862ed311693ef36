"""Reads CSV files with an image on each line: its label, then 784 grey levels."""

import itertools
import re

from mnist import Error
from mnist.data.readers import SIDE, empty_aligned, open_unpacked, reading

import numpy as np

_COLUMNS = 1 + SIDE * SIDE
_NUMBER = re.compile(r"[^a-z]*\d[^a-z]*")
_NO_LABEL = re.compile(r"(|id|index|image.*|pixel.*|unnamed.*|\d+x\d+|p\d+)")  # names of a first column
_LABELS = {"label", "labels", "class", "classes", "target", "digit", "y"}
_MAX_LINE = 2**16  # bytes. 785 numbers and their names take less


def has_images(path):
    """Returns whether the first line of a CSV file has the columns of an image, perhaps without its label."""
    with reading(path, "a CSV file"), open_unpacked(path) as (file, _):
        return file.readline(_MAX_LINE).count(b",") >= SIDE * SIDE - 1


def read(path):
    """Reads a CSV file, gzipped if its name ends in `.gz`. Its first line may name the columns.

    Returns: images, uint8 `[N, 28, 28, 1]`, and labels, uint8 `[N]`. Raises: `mnist.Error`.
    """
    with reading(path, "a CSV file of a label and grey levels from 0 to 255"), open_unpacked(path) as (file, limit):
        lines = _lines(file, limit, path)
        first = next(lines, "")
        if (columns := first.count(",") + 1) != _COLUMNS:
            trouble = f"{path} has {columns} columns, expected a label and {SIDE * SIDE} grey levels"
            if columns == SIDE * SIDE:
                raise Error(
                    f"{trouble}. It has no labels, as the test.csv of Kaggle. Split the labelled lines of train.csv "
                    "into train.csv and test.csv in another folder."
                )
            raise Error(f"{trouble}. Write them with index=False." if columns == _COLUMNS + 1 else f"{trouble}.")
        names = [name.strip().strip('"').lower() for name in first.split(",")]
        is_header = not _NUMBER.fullmatch(names[0])
        if is_header and (_NO_LABEL.fullmatch(names[0]) or _LABELS & set(names[1:])):
            raise Error(f"{path}: the first column is {names[0]!r:.30}, expected the label. Put the label there.")
        if is_header and not (first := next(lines, "")):
            raise Error(f"{path} holds no images.")
        rows = np.loadtxt(itertools.chain([first], lines), np.uint8, delimiter=",", comments=None, ndmin=2)
        images = empty_aligned(len(rows) * SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
        images[...] = rows[:, 1:].reshape(-1, SIDE, SIDE, 1)
        return images, rows[:, 0].copy()


def _lines(file, limit, path):
    """Yields the lines of a file, and raises `mnist.Error` where it holds more than CSV files do."""
    for number in itertools.count(1):
        line = file.readline(_MAX_LINE)
        limit -= len(line)
        if limit < 0 or len(line) == _MAX_LINE:
            raise Error(f"{path}: line {number} is too long, or the file grows to too many bytes for its size.")
        if not line:
            return
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")
