"""Reads IDX and npz files that may be damaged or hostile.

A reader returns a NumPy array or raises `mnist.Error`. It never unpickles, and it takes no more
memory than the file's own size times a small factor, whatever the file's header claims. What is of
another shape or type than is taken is refused by its header, however large it is.
"""

import contextlib
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
MAX_CLASSES = 1000
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")  # as Keras publishes MNIST
# IDX: two zero bytes, the type of the numbers, how many dimensions (http://yann.lecun.com/exdb/mnist). Labels
# above 255 need more than the classic files' unsigned bytes.
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAGIC = {"images": 0x0803, "labels": 0x0801}
_MAX_DIMENSIONS = 8
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


def read_images(path, name=None):
    """Reads uint8 images `[N, 28, 28, 1]`.

    Args:
      path: an IDX file, gzipped if its name ends in `.gz`, or an npz file.
      name: of the array in the npz file; None: it is an IDX file.
    """
    images = _read_npz(path, name, "images") if name else _read_idx(path, "images")
    return np.ascontiguousarray(images.reshape(-1, SIDE, SIDE, 1))


def read_labels(path, name=None):
    """Reads labels `[N]` from 0 to 999, uint8, or int32 if one is above 255; arguments as of `read_images`."""
    labels = _read_npz(path, name, "labels") if name else _read_idx(path, "labels")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= MAX_CLASSES:
        what = f"{name} holds labels" if name else "labels"
        raise Error(f"{path}: {what} from {low} to {high}, expected 0 to {MAX_CLASSES - 1}.")
    return labels.astype(np.uint8 if high < 256 else np.int32, copy=False)


def count_images(path, name=None):
    """How many images `read_images` would read, by the header alone. Raises: `mnist.Error` if they are not taken."""
    with _open_npz(path, name, "images") if name else _open_idx(path, "images") as (_, _, shape):
        return shape[0]


@contextlib.contextmanager
def _open_idx(path, what):
    """Yields an open IDX file after its header, and the dtype and the shape that this tells, checked."""
    try:
        if os.path.getsize(path) == 0:
            raise Error(f"{path} is empty: expected an IDX file of {what}.")
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            yield file, *_read_header(file, path, what)
    except EOFError:
        raise Error(f"{path} is truncated: the gzip stream stops early. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Error(f"{path} is not a sound gzip file ({error}). Fetch it again.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None


def _read_idx(path, what):
    with _open_idx(path, what) as (file, dtype, shape):
        size = os.path.getsize(path)
        length = math.prod(shape) * dtype.itemsize
        limit = max(size * _MAX_GROWTH, _FREE_BYTES) if path.endswith(".gz") else size
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
    if filled < length or extra:
        found = f"only {filled:,}" if filled < length else f"more than {filled:,}"
        raise Error(f"{path}: {found} bytes of {what} where its header claims {length:,}.")
    return array.view(dtype).reshape(shape)


def _read_header(file, path, what):
    """Returns the dtype and the shape that an IDX header tells, checked: `[N, 28, 28(, 1)]` or `[N]`."""
    magic = file.read(4)
    found, expected = int.from_bytes(magic, "big"), _MAGIC[what]
    kind, dimensions = found >> 8, found & 0xFF
    least, most = (2, _MAX_DIMENSIONS) if what == "images" else (1, 1)
    if len(magic) < 4 or kind not in _IDX_TYPES or not least <= dimensions <= most:
        raise Error(f"{path} is no IDX file of {what}: magic number {found:#010x}, expected {expected:#010x}.")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise Error(f"{path} is truncated within its header.")
    dtype, shape = np.dtype(_IDX_TYPES[kind]), tuple(np.frombuffer(header, ">u4").tolist())
    if found == expected and shape[1:] not in ((), (SIDE, SIDE)):
        raise Error(f"{path}: images of {shape[1]}x{shape[2]}, expected {SIDE}x{SIDE}. Resize them first.")
    _check_type(path, what, what, dtype, shape)
    return dtype, shape


@contextlib.contextmanager
def _open_npz(path, name, what):
    """Yields a function that opens an array's .npy file, and the dtype and the shape that this tells, checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            expected = NPZ_NAMES if name in NPZ_NAMES else (name,)
            missing = [name for name in expected if f"{name}.npy" not in archive.namelist()]
            if missing:
                arrays = f"the array{'s' * (len(expected) > 1)} {', '.join(expected)}"
                raise Error(f"{path} has no {missing[0]}: expected {arrays}.")
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > max(os.path.getsize(path) * _MAX_GROWTH, _FREE_BYTES):
                raise Error(f"{path} would grow to {member.file_size:,} bytes, too many for its size; refused.")
            # zipfile unpacks deflate piece by piece; 4 KiB of bzip2 can become gigabytes at once.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Error(f"{path}: {name} is not packed as NumPy packs it. Use np.savez_compressed.")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:  # 3.0 is for fields of records
                    raise ValueError(f"{name} is of version {version[0]}.{version[1]}")
                shape, _, dtype = read[version](file)
            if dtype.hasobject:
                raise ValueError("it holds pickled objects")
            _check_type(path, name, what, dtype, shape)
            yield lambda: archive.open(member), dtype, shape
    except Error:
        raise
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    # NumPy and zipfile raise what they please on damaged input (SyntaxError and MemoryError among
    # them); whatever it is, the file is at fault.
    except Exception as error:
        reason = textwrap.shorten(str(error).partition("\n")[0], 200) or type(error).__name__
        raise Error(f"{path} is not a sound npz file of plain arrays: {reason.rstrip('.')}.") from None


def _read_npz(path, name, what):
    with _open_npz(path, name, what) as (open_array, _, _), open_array() as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # reading to the end also has zipfile check the CRC
            raise Error(f"{path}: {name} holds more bytes than its header claims.")
        return array


def _check_type(path, name, what, dtype, shape):
    """Raises `mnist.Error` unless an array is uint8 images `[N, 28, 28(, 1)]` or integer labels `[N]`."""
    found = f"{path}: {name} {'are' if name == what else 'is'} {dtype.newbyteorder('=')} {list(shape)}"
    if what == "images" and (dtype != np.uint8 or shape[1:] not in ((SIDE, SIDE), (SIDE, SIDE, 1))):
        raise Error(f"{found}, expected uint8 [N, {SIDE}, {SIDE}] with values 0 to 255, grey.")
    if what == "labels" and (len(shape) != 1 or dtype.kind not in "ui"):
        raise Error(f"{found}, expected integers [N].")
