"""Reads IDX and npz files that may be damaged or hostile.

A reader returns a NumPy array or raises `mnist.Error`. It never unpickles, and it takes no more
memory than the file's own size times a small factor, whatever the file's header claims.
"""

import gzip
import math
import os
import textwrap
import zipfile
import zlib

from mnist import Error

import numpy as np

SIDE = 28  # an image's rows and columns
NUM_CLASSES = 10  # of the classic data sets, labels 0 to 9
DIGITS = tuple(map(str, range(NUM_CLASSES)))  # names of these
# IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions (http://yann.lecun.com/exdb/mnist).
_IMAGES_MAGIC = 0x0803
_LABELS_MAGIC = 0x0801
# A compressed file may grow by this factor (MNIST's grow by 5), or up to the free allowance, which
# lets small files of blank images pass. Deflate itself could grow by 1,032.
_MAX_GROWTH = 64
_FREE_BYTES = 64 * 2**20


# TensorFlow uses an array in place, without a copy, if it begins at a multiple of this many bytes.
ALIGNMENT = 64


def empty_aligned(length):
    """uint8 `[length]`, not set to anything, that begins at a multiple of `ALIGNMENT`."""
    buffer = np.empty(length + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + length]


def read_idx_images(path):
    """Reads uint8 images `[N, 28, 28, 1]` from an IDX file, gzipped if its name ends in `.gz`."""
    return _read_idx(path, _IMAGES_MAGIC, "images")[..., np.newaxis]


def read_idx_labels(path):
    """Reads uint8 labels `[N]` from an IDX file, gzipped if its name ends in `.gz`."""
    return _read_idx(path, _LABELS_MAGIC, "labels")


def _read_idx(path, magic, what):
    try:
        size = os.path.getsize(path)
        if size == 0:
            raise Error(f"{path} is empty: expected an IDX file of {what}.")
        compressed = path.endswith(".gz")
        with gzip.open(path) if compressed else open(path, "rb") as file:
            shape = _read_header(file, path, magic, what)
            length = math.prod(shape)
            limit = max(size * _MAX_GROWTH, _FREE_BYTES) if compressed else size
            if length > limit:
                raise Error(
                    f"{path}: its header claims {shape[0]:,} {what}, more than a file of {size:,} "
                    "bytes holds. Is it truncated or damaged?"
                )
            array = empty_aligned(length)
            filled = 0
            while filled < length and (count := file.readinto(memoryview(array)[filled:])):
                filled += count
            extra = file.read(1)
    except EOFError:
        raise Error(f"{path} is truncated: the gzip stream stops early. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Error(f"{path} is not a sound gzip file ({error}). Fetch it again.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    if filled < length or extra:
        found = f"only {filled:,}" if filled < length else f"more than {filled:,}"
        raise Error(f"{path}: {found} bytes of {what} where its header claims {length:,}.")
    return array.reshape(shape)


def _read_header(file, path, magic, what):
    """Returns the shape that an IDX header tells, checked: `[N, 28, 28]` or `[N]`."""
    dimensions = magic & 0xFF
    header = file.read(4 * (1 + dimensions))
    found = int.from_bytes(header[:4], "big")
    if len(header) < 4 or found != magic:
        raise Error(f"{path} is no IDX file of {what}: magic number {found:#010x}, expected {magic:#010x}.")
    if len(header) < 4 * (1 + dimensions):
        raise Error(f"{path} is truncated within its header.")
    shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
    if shape[1:] not in ((), (SIDE, SIDE)):
        raise Error(f"{path}: images of {shape[1]}x{shape[2]}, expected {SIDE}x{SIDE}. Resize them first.")
    return shape


def read_npz(path):
    """Reads `x_train, y_train, x_test, y_test` from an npz file as Keras publishes MNIST.

    Returns: a dict from those four names to uint8 arrays: images `[N, 28, 28, 1]`, labels `[N]`.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = {}
    try:
        limit = max(os.path.getsize(path) * _MAX_GROWTH, _FREE_BYTES)
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in names if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise Error(f"{path} has no {missing[0]}: expected the arrays {', '.join(names)}.")
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if (total := sum(member.file_size for member in members)) > limit:
                raise Error(f"{path} would grow to {total:,} bytes, too many for its size; refused.")
            for name, member in zip(names, members, strict=True):
                # zipfile unpacks deflate piece by piece; 4 KiB of bzip2 can become gigabytes at once.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Error(f"{path}: {name} is not packed as NumPy packs it. Use np.savez_compressed.")
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):  # reading to the end also has zipfile check the CRC
                        raise Error(f"{path}: {name} holds more bytes than its header claims.")
    except Error:
        raise
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    # NumPy and zipfile raise what they please on damaged input (SyntaxError and MemoryError among
    # them); whatever it is, the file is at fault.
    except Exception as error:
        reason = textwrap.shorten(str(error).partition("\n")[0], 200) or type(error).__name__
        if "allow_pickle=False" in reason:
            reason = "it holds pickled objects"
        raise Error(f"{path} is not a sound npz file of plain arrays: {reason.rstrip('.')}.") from None
    return {name: _check_array(path, name, array) for name, array in arrays.items()}


def _check_array(path, name, array):
    if name.startswith("x_"):
        images = array[..., np.newaxis] if array.ndim == 3 else array
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 1):
            raise Error(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, "
                f"expected uint8 [N, {SIDE}, {SIDE}] with values 0 to 255."
            )
        return np.ascontiguousarray(images)
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise Error(f"{path}: {name} is {array.dtype} {list(array.shape)}, expected integers [N].")
    if len(array) and (array.min() < 0 or array.max() > 255):
        raise Error(
            f"{path}: {name} holds labels from {array.min()} to {array.max()}, expected 0 to {NUM_CLASSES - 1}."
        )
    return array.astype(np.uint8)
