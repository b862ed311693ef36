"""The format of images and labels in memory, and the limits of every reader of files, which may be damaged or hostile.

A reader returns NumPy arrays or raises `mnist.Error`. It never unpickles. It takes no more memory than the file's size
times a small factor, whatever a header claims.
"""

import contextlib
import gzip
import os
import textwrap
import zlib

from mnist import Error

import numpy as np

SIDE = 28  # rows and columns of an image
MAX_CLASSES = 256  # labels are uint8
_SHAPES = ((SIDE, SIDE), (SIDE, SIDE, 1), (1, SIDE, SIDE), (SIDE * SIDE,))  # of one image in an array
# Factor by which a compressed file may grow. MNIST's files grow by 5, and deflate can grow by 1,032.
_MAX_GROWTH = 64
_FREE_BYTES = 64 * 2**20  # a compressed file may always grow to this size, so that small files of blank images pass

ALIGNMENT = 64  # TensorFlow uses an array without a copy if it begins at a multiple of this many bytes


def empty_aligned(length):
    """Returns an uninitialized uint8 array `[length]` that begins at a multiple of `ALIGNMENT`."""
    buffer = np.empty(length + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + length]


def as_images(array, found):
    """Returns images as grey levels, uint8 `[N, 28, 28, 1]`. An array of uint8 is not copied if its layout allows it.

    Args:
      array: `[N, 28, 28]`, `[N, 28, 28, 1]`, `[N, 1, 28, 28]` or `[N, 784]`. Integers from 0 to 255, floats from 0 to
        255 or from 0 to 1 that are grey levels exactly, or bool.
      found: a str. The name of the array, for messages.

    Raises: `mnist.Error` for other shapes, types or values.
    """
    if array.shape[1:] not in _SHAPES or array.dtype.kind not in "buif":
        described = f"{found}: {_describe(array)}, expected {SIDE}x{SIDE} grey images [N, {SIDE}, {SIDE}]"
        if array.shape[1:] in ((SIDE, SIDE, 3), (3, SIDE, SIDE)):
            axis = array.shape.index(3, 1)
            raise Error(f"{described}. Make colours grey, as x.mean({axis}).round().astype(np.uint8).")
        if array.ndim == 3 and array.dtype == np.uint8:
            resized = f"np.asarray(Image.fromarray(i).resize(({SIDE}, {SIDE}))) for i in x"
            raise Error(f"{described}. Resize them with Pillow, as np.stack([{resized}]).")
        raise Error(f"{described}. Convert them first.")
    shape = len(array), SIDE, SIDE, 1
    if array.dtype == np.uint8 or not len(array):
        return array.astype(np.uint8, copy=False).reshape(shape)
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 255:  # true for NaN, too
        raise Error(
            f"{found}: {array.dtype} from {low} to {high}, expected grey levels from 0 to 255, or from 0 to 1. "
            "Convert all, as np.rint(255 * (x - LOW) / (HIGH - LOW)).astype(np.uint8)."
        )
    kind, array = array.dtype, array.reshape(shape)
    images = empty_aligned(array.size).reshape(shape)
    scale = 255 if kind.kind == "b" or (kind.kind == "f" and high <= 1) else 1
    tolerance = 0.125 if scale > 1 and kind.itemsize == 2 else 1e-3  # float16 rounds n / 255 that much
    for start in range(0, len(array), 1000):  # in parts, which need little memory
        levels = array[start : start + 1000].astype(np.float64) * scale
        images[start : start + 1000] = grey = np.rint(levels)
        if np.abs(levels - grey).max() > tolerance:
            raise Error(
                f"{found}: {kind} from {low} to {high} that are not grey levels in steps of 1 or 1/255. "
                f"Round them, as np.rint({'255 * ' if scale > 1 else ''}x).astype(np.uint8)."
            )
    return images


def as_labels(array, found):
    """Returns labels as uint8 `[N]`.

    Args:
      array: `[N]`, `[N, 1]`, or one-hot `[N, classes]`. Integers, bool, or floats with integer values, from 0 to 255.
      found: a str. The name of the array, for messages.

    Raises: `mnist.Error` for other shapes, types or values.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or array.dtype.kind not in "buif":
        names = ", as the second result of np.unique(y, return_inverse=True)" if array.dtype.kind in "SUO" else " first"
        raise Error(f"{found}: {_describe(array)}, expected integers [N]. Convert them{names}.")
    if array.ndim == 2:
        is_one = array == 1
        if len(several := np.flatnonzero((is_one.sum(1) != 1) | ((array != 0).sum(1) != 1))):
            row = f"row {several[0]} has {np.count_nonzero(array[several[0]])} entries that are not 0"
            raise Error(f"{found}: {_describe(array)} is not one-hot, because {row}. An image has one label.")
        array = is_one.argmax(1)
    low, high = (array.min(), array.max()) if len(array) else (0, 0)
    if not 0 <= low <= high < MAX_CLASSES:
        raise Error(f"{found}: from {low} to {high}, expected 0 to {MAX_CLASSES - 1}.")
    labels = array.astype(np.uint8, copy=False)
    if array.dtype.kind == "f" and (labels != array).any():
        raise Error(f"{found}: {_describe(array)} with fractions, expected integers.")
    return labels


def _describe(array):
    return f"{array.dtype.newbyteorder('=')} {list(array.shape)}"


def list_some(names):
    """Returns the first five names and whether there are more, as a text for messages."""
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


@contextlib.contextmanager
def reading(path, what):
    """Turns an exception of a reader into an `mnist.Error`: `path` cannot be read, or is not `what`."""
    try:
        yield
    except Error:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Error(f"{path} is truncated or not {what} ({_reason(error)}). Fetch it again.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or _reason(error)}.") from None
    # NumPy, zipfile and Pillow raise any exception on damaged input, for example SyntaxError and MemoryError.
    except Exception as error:
        raise Error(f"{path} is not {what}: {_reason(error)}.") from None


def _reason(error):
    return textwrap.shorten(str(error).partition("\n")[0], 200).rstrip(".") or type(error).__name__


def max_bytes(path):
    """Returns how many bytes a compressed file may hold."""
    return max(os.path.getsize(path) * _MAX_GROWTH, _FREE_BYTES)


@contextlib.contextmanager
def open_unpacked(path):
    """Opens a file, gzipped if its name ends in `.gz`. Yields: the file, and how many bytes it may hold."""
    is_packed = path.lower().endswith(".gz")
    limit = max_bytes(path) if is_packed else os.path.getsize(path)
    with gzip.open(path) if is_packed else open(path, "rb") as file:
        yield file, limit


def read_rest(file, length, found):
    """Reads the rest of a file, which has to be `length` bytes.

    Returns: uint8 `[length]`, aligned. Raises: `mnist.Error` that begins with `found` for another number of bytes.
    """
    array, filled = empty_aligned(length), 0
    while filled < length and (count := file.readinto(memoryview(array)[filled : filled + 2**20])):
        filled += count
    if filled < length or file.read(1):  # zipfile and gzip check the checksum when they read the end
        held = f"only {filled:,}" if filled < length else f"more than {filled:,}"
        raise Error(f"{found}: {held} bytes where the header claims {length:,}.")
    return array
