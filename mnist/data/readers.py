"""Readers of IDX and npz files that may be damaged or hostile.

A reader returns a NumPy array or raises `mnist.Error`. It never unpickles. It takes no more memory than the file's size
times a small factor, whatever the header claims.
"""

import gzip
import math
import os
import textwrap
import zipfile
import zlib

from mnist import Error

import numpy as np

SIDE = 28  # rows and columns of an image
MAX_CLASSES = 256  # labels are uint8
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")  # as Keras publishes MNIST
# An IDX file of uint8 begins with 00 00 08 and the number of dimensions (http://yann.lecun.com/exdb/mnist). Images may
# have a fourth one, the channel.
_MAGIC = {"images": (0x0803, 0x0804), "labels": (0x0801,)}
# Factor by which a compressed file may grow. MNIST's files grow by 5, and deflate can grow by 1,032.
_MAX_GROWTH = 64
_FREE_BYTES = 64 * 2**20  # a compressed file may always grow to this size, so that small files of blank images pass

ALIGNMENT = 64  # TensorFlow uses an array without a copy if it begins at a multiple of this many bytes


def empty_aligned(length):
    """Returns an uninitialized uint8 array `[length]` that begins at a multiple of `ALIGNMENT`."""
    buffer = np.empty(length + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + length]


def read_images(path, name=None):
    """Reads the array `name` of an npz file, or without a name an IDX file, gzipped if its path ends in `.gz`.

    Returns: uint8 `[N, 28, 28, 1]`. Raises: `mnist.Error`.
    """
    images = _read_npz(path, name, "images") if name else _read_idx(path, "images")
    return np.ascontiguousarray(images.reshape(-1, SIDE, SIDE, 1))


def read_labels(path, name=None):
    """Reads labels, with the arguments of `read_images`. Returns: uint8 `[N]`. Raises: `mnist.Error`."""
    labels = _read_npz(path, name, "labels") if name else _read_idx(path, "labels")
    return as_uint8(labels, f"{path}: {name} holds labels")


def as_uint8(labels, found):
    """Returns integers `[N]` as uint8. Raises: `mnist.Error` that begins with `found` if one is not from 0 to 255."""
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= MAX_CLASSES:
        raise Error(f"{found} from {low} to {high}, expected 0 to {MAX_CLASSES - 1}.")
    return labels.astype(np.uint8, copy=False)


def _read_idx(path, what):
    try:
        size = os.path.getsize(path)
        if size == 0:
            raise Error(f"{path} is empty, expected an IDX file of {what}.")
        is_packed = path.endswith(".gz")
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            shape = _read_header(file, path, what)
            length = math.prod(shape)
            if length > (max(size * _MAX_GROWTH, _FREE_BYTES) if is_packed else size):
                raise Error(
                    f"{path}: its header claims {shape[0]:,} {what}, more than a file of {size:,} "
                    "bytes holds. Is it truncated or damaged?"
                )
            array, filled = empty_aligned(length), 0
            while filled < length and (count := file.readinto(memoryview(array)[filled:])):
                filled += count
            extra = file.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Error(f"{path} is truncated or not a sound gzip file ({error}). Fetch it again.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    if filled < length or extra:
        found = f"only {filled:,}" if filled < length else f"more than {filled:,}"
        raise Error(f"{path}: {found} bytes of {what} where its header claims {length:,}.")
    return array.reshape(shape)


def _read_header(file, path, what):
    magic = file.read(4)
    number, dimensions = int.from_bytes(magic, "big"), magic[-1] if magic else 0
    if len(magic) < 4 or number not in _MAGIC[what]:
        expected = f"magic number {number:#010x}, expected {_MAGIC[what][0]:#010x}"
        raise Error(f"{path} is not an IDX file of {what}: {expected}.")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise Error(f"{path} is truncated within its header.")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    check_type(path, what, what, np.dtype(np.uint8), shape)
    return shape


def _read_npz(path, name, what):
    try:
        with zipfile.ZipFile(path) as archive:
            expected = NPZ_NAMES if name in NPZ_NAMES else (name,)
            if missing := [name for name in expected if f"{name}.npy" not in archive.namelist()]:
                raise Error(f"{path} has no {missing[0]}, expected the arrays {', '.join(expected)}.")
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > max(os.path.getsize(path) * _MAX_GROWTH, _FREE_BYTES):
                raise Error(f"{path} would grow to {member.file_size:,} bytes, too many for its size.")
            # zipfile unpacks deflate piece by piece, but 4 KiB of bzip2 can become gigabytes at once.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Error(f"{path}: {name} is not packed as NumPy packs it. Use np.savez_compressed.")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):  # this also makes zipfile check the CRC, which it does at the end of the file
                    raise Error(f"{path}: {name} holds more bytes than its header claims.")
            check_type(path, name, what, array.dtype, array.shape)
            return array
    except Error:
        raise
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    # NumPy and zipfile raise any exception on damaged input, for example SyntaxError and MemoryError.
    except Exception as error:
        reason = textwrap.shorten(str(error).partition("\n")[0], 200) or type(error).__name__
        raise Error(f"{path} is not a sound npz file of plain arrays: {reason.rstrip('.')}.") from None


def check_type(path, name, what, dtype, shape):
    """Raises `mnist.Error` unless an array is uint8 images `[N, 28, 28]`, `[N, 28, 28, 1]` or integer labels `[N]`.

    The path is the file, or "" for an array in memory.
    """
    if what == "images":
        sound = dtype == np.uint8 and shape[1:] in ((SIDE, SIDE), (SIDE, SIDE, 1))
        expected = f"uint8 [N, {SIDE}, {SIDE}] with grey levels from 0 to 255"
    else:
        sound, expected = len(shape) == 1 and dtype.kind in "ui", "integers [N]"
    if not sound:
        place = f"{path}: {name}" if path else f"the {name}"
        found = f"{place} {'are' if name == what else 'is'} {dtype.newbyteorder('=')} {list(shape)}"
        raise Error(f"{found}, expected {expected}. Convert them first.")
