"""Reads arrays from npz and npy files."""

import math
import os
import zipfile

from mnist import Error
from mnist.data.readers import max_bytes, read_rest, reading

import numpy as np

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def names_in(path):
    """Returns the names of the arrays in an npz file, a list of strings. Raises: `mnist.Error`."""
    with reading(path, "a sound npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz(path, name):
    """Reads one array of an npz file. Returns: numbers of any shape. Raises: `mnist.Error`."""
    with reading(path, "a sound npz file"), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise Error(f"{path} has no array {name}.")
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > max_bytes(path):
            raise Error(f"{path} would grow to {member.file_size:,} bytes, too many for its size.")
        # zipfile unpacks deflate piece by piece, but 4 KiB of bzip2 can become gigabytes at once.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Error(f"{path}: {name} is not packed as NumPy packs it. Use np.savez_compressed.")
        with archive.open(member) as file:
            return _read(file, member.file_size, f"{path}: {name}")


def read_npy(path):
    """Reads an npy file. Returns: numbers of any shape. Raises: `mnist.Error`."""
    with reading(path, "a sound npy file"), open(path, "rb") as file:
        return _read(file, os.path.getsize(path), path)


def _read(file, size, found):
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise Error(f"{found}: version {version} of the npy format, expected 1 or 2.")
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.kind not in "buifUS":  # a size that is not 0, and no Python objects, which NumPy would unpickle
        raise Error(f"{found}: {dtype.name} {list(shape)}, expected an array of numbers.")
    length = math.prod(shape) * dtype.itemsize
    if length > size:
        raise Error(f"{found}: the header claims {length:,} bytes, more than the file holds.")
    array = read_rest(file, length, found).view(dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
