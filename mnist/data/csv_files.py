"""Reads CSV files with an image on each line: its label and 784 grey levels."""

import io
import itertools
import re

from mnist import Error
from mnist.data.readers import SIDE, empty_aligned, open_unpacked, reading

import numpy as np

_COLUMNS = 1 + SIDE * SIDE
_DELIMITERS = ",;\t"
_NUMBER = re.compile(r"[^a-z]*\d[^a-z]*")
_NO_LABEL = re.compile(r"(|id|index|image.*|pixel.*|unnamed.*|\d+x\d+|p\d+)")  # names of a first column
_LABELS = {"label", "labels", "class", "classes", "target", "digit", "y"}
_POSITIONS = [str(i) for i in range(_COLUMNS)]  # the names of columns without names, as pandas writes them
_MAX_LINE = 2**16  # characters. 785 numbers and their names take less


def has_images(path):
    """Returns whether the first line of a CSV file has the columns of an image, perhaps without its label."""
    with reading(path, "a CSV file"), open_unpacked(path) as (file, _):
        line = file.readline(_MAX_LINE)
        return max(line.count(delimiter.encode()) for delimiter in _DELIMITERS) >= SIDE * SIDE - 1


def read(path):
    """Reads a CSV file, gzipped if its name ends in `.gz`. Its first line may name the columns.

    The label is the first column, or the one that the first line names so. Commas, semicolons or tabs separate columns.

    Returns: images, uint8 `[N, 28, 28, 1]`, and labels, uint8 `[N]`. Raises: `mnist.Error`.
    """
    with reading(path, "a CSV file of a label and grey levels from 0 to 255"), open_unpacked(path) as (file, limit):
        lines = _lines(file, limit, path)
        first = next(lines, (1, ""))
        delimiter = max(_DELIMITERS, key=first[1].count)
        _check_columns(path, *first, delimiter)
        names = _split(first[1], delimiter)
        is_header = not _NUMBER.fullmatch(names[0]) or names == _POSITIONS
        label = _find_label(names, path) if is_header else None
        if is_header and not (first := next(lines, None)):
            raise Error(f"{path} holds no images.")
        rows = _read_rows(path, itertools.chain([first], lines), delimiter)
    if label is None:
        label, last = 0, np.unique(rows[:, -1])
        if not rows[:, 0].any() and len(last) > 1 and last[-1] - last[0] == len(last) - 1:
            found = f"the first column is 0 on every line, and the last one has all values from {last[0]} to {last[-1]}"
            raise Error(f"{path}: {found}, as labels have. Put the label first, or name the columns on the first line.")
    images = empty_aligned(len(rows) * SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
    flat = images.reshape(-1, SIDE * SIDE)
    flat[:, :label], flat[:, label:] = rows[:, :label], rows[:, label + 1 :]
    return images, rows[:, label].copy()


def _lines(file, limit, path):
    """Yields the number and the text of each line that is not blank, whatever ends it: LF, CR LF or CR.

    Raises: `mnist.Error` where a file holds more than CSV files do.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    for number in itertools.count(1):
        line = text.readline(_MAX_LINE)
        limit -= len(line)
        if limit < 0 or len(line) == _MAX_LINE:
            raise Error(f"{path}: line {number} is too long, or the file grows to too many bytes for its size.")
        if not line:
            return
        if not line.isspace():
            yield number, line


def _split(line, delimiter):
    return [value.strip().strip('"').lower() for value in line.split(delimiter)]


def _find_label(names, path):
    """Returns the place of the label among the names of the columns, or None if no name decides it."""
    found = [i for i, name in enumerate(names) if name in _LABELS]
    if not found and _NO_LABEL.fullmatch(names[0]):
        raise Error(f"{path}: the first column is {names[0]!r:.30}, expected the label. Name its column label.")
    return found[0] if found else None


def _check_columns(path, number, line, delimiter):
    columns = line.count(delimiter) + 1
    if columns == _COLUMNS:
        return
    trouble = f"{path}: line {number} has {columns} columns, expected a label and {SIDE * SIDE} grey levels"
    if number == 1 and columns == SIDE * SIDE:
        raise Error(
            f"{trouble}. It has no labels, as the test.csv of Kaggle. Split the labelled lines of train.csv "
            "into train.csv and test.csv in another folder."
        )
    if number == 1 and columns == _COLUMNS + 1:
        raise Error(f"{trouble}. Write them with index=False.")
    raise Error(f"{trouble}. Complete or remove the line.")


def _read_rows(path, lines, delimiter):
    """Returns the numbers of lines, uint8 `[N, 785]`. Raises: `mnist.Error` that names the first line without."""
    place = 0, ""

    def checked():
        nonlocal place
        for place in lines:
            _check_columns(path, *place, delimiter)
            yield place[1]

    try:
        return np.loadtxt(checked(), np.uint8, delimiter=delimiter, quotechar='"', comments=None, ndmin=2)
    except ValueError:  # for the last line that NumPy took
        number, line = place
        for column, value in enumerate(_split(line, delimiter), 1):
            if not re.fullmatch("[0-9]+", value) or int(value) > 255:
                found = f"{path}: line {number}, column {column} is {value!r:.30}, expected an integer from 0 to 255"
                raise Error(f"{found}. In pandas, x.round().astype('uint8') makes integers.") from None
        raise
