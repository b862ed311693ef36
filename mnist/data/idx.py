"""Reads IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist), raw or gzipped."""

import math
import os

from mnist import Error
from mnist.data.readers import open_unpacked, read_rest, reading

import numpy as np

# An IDX file of uint8 begins with 00 00 08 and the number of dimensions. Images may have a fourth one, the channel.
_MAGIC = {"images": (0x0803, 0x0804), "labels": (0x0801,)}


def read(path, what):
    """Reads an IDX file of uint8, gzipped if its name ends in `.gz`.

    Args:
      path: a str.
      what: "images" or "labels".

    Returns: images, uint8 `[N, H, W]` or `[N, H, W, C]`, or labels, uint8 `[N]`. Raises: `mnist.Error`.
    """
    with reading(path, "a sound gzip file" if path.endswith(".gz") else f"an IDX file of {what}"):
        if os.path.getsize(path) == 0:
            raise Error(f"{path} is empty, expected an IDX file of {what}.")
        with open_unpacked(path) as (file, limit):
            shape = _read_shape(file, path, what)
            length = math.prod(shape)
            if length > limit:
                raise Error(
                    f"{path}: its header claims {shape[0]:,} {what}, more than a file of "
                    f"{os.path.getsize(path):,} bytes holds. Is it truncated or damaged?"
                )
            return read_rest(file, length, f"{path}: {what}").reshape(shape)


def _read_shape(file, path, what):
    magic = file.read(4)
    number, dimensions = int.from_bytes(magic, "big"), magic[-1] if magic else 0
    if len(magic) < 4 or number not in _MAGIC[what]:
        expected = f"magic number {number:#010x}, expected {_MAGIC[what][0]:#010x}"
        raise Error(f"{path} is not an IDX file of {what}: {expected}.")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise Error(f"{path} is truncated within its header.")
    return tuple(np.frombuffer(header, ">u4").tolist())
