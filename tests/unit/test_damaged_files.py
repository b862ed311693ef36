"""Random damage to files from outside: each reader returns arrays or raises `mnist.Error`, soon and in little memory.

`pytest --hypothesis-profile=large tests/unit/test_damaged_files.py` tries 5,000 files for each reader.
"""

import functools
import gzip
import resource
import struct
import zipfile
import zlib

import mnist
from mnist import data as mnist_data
from mnist import predict
from mnist.data import class_folders, csv_files, idx, npy

import numpy as np
import pytest
from conftest import csv_rows, idx_bytes, image_bytes, npy_bytes, zip_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

IMAGES = np.zeros([3, 28, 28], np.uint8)
IMAGES[:, 6:22, 12:16] = np.random.default_rng(0).integers(0, 256, (3, 16, 4))
LABELS = np.array([1, 7, 9], np.uint8)
NPY = {"x": npy_bytes(IMAGES), "y": npy_bytes(LABELS)}
CSV = "\n".join(["label" + ",pixel" * 784, *csv_rows(IMAGES, LABELS)]).encode()
MODES = ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")  # of PNG files
MAX_KIB = 2**20  # by which the memory of this process may grow


@st.composite
def damaged(draw, content):
    """Draws `content` with up to four stretches overwritten, cut out, inserted or repeated, and perhaps cut short."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, 48) | st.integers(0, len(changed)))  # headers are at the start
        width = draw(st.sampled_from([0, 1, 2, 4, 16]))
        new = draw(st.sampled_from([b"", b"\0", b"\xff", b"\x7f"]) | st.binary(min_size=1, max_size=4) | st.none())
        new = changed[start : start + 16] if new is None else new
        changed[start : start + width] = new * draw(st.sampled_from([1, max(1, width)]))
    return bytes(changed[: draw(st.just(None) | st.integers(0, len(changed)))])


@st.composite
def damaged_npz(draw):
    """Draws an npz file with damage to the file, or to its arrays under sound checksums."""
    members = {f"{what}_{part}.npy": content for part in ("train", "test") for what, content in NPY.items()}
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    if draw(st.booleans()):
        return draw(damaged(zip_bytes(members, compression)))
    return zip_bytes({name: draw(damaged(content)) for name, content in members.items()}, compression)


@st.composite
def damaged_png(draw):
    """Draws a PNG file with damage to the file, or to its chunks under sound checksums."""
    image = Image.fromarray(IMAGES[0]).convert(draw(st.sampled_from(MODES)))
    png, position = bytearray(draw(damaged(image_bytes(image)))), 8
    while draw(st.booleans()) if position == 8 else position + 12 <= len(png):
        end = position + 8 + int.from_bytes(png[position : position + 4], "big")
        if end + 4 > len(png):
            break
        struct.pack_into(">I", png, end, zlib.crc32(png[position + 4 : end]))
        position = end + 4
    return bytes(png)


def damaged_gz(content):
    return damaged(gzip.compress(content)) | damaged(content).map(gzip.compress)


def read_npz(path):
    dataset = mnist_data.load("auto", path)
    return [*dataset.train, *dataset.test]


def damaged_picture(end, mode):
    return damaged(image_bytes(Image.fromarray(IMAGES[0]).convert(mode), end))


read_images, read_labels = (functools.partial(idx.read, what=what) for what in ("images", "labels"))
READERS = {
    "images": (read_images, damaged(idx_bytes(IMAGES))),
    "images.gz": (read_images, damaged_gz(idx_bytes(IMAGES))),
    "labels": (read_labels, damaged(idx_bytes(LABELS))),
    "labels.gz": (read_labels, damaged_gz(idx_bytes(LABELS))),
    "mnist.npz": (read_npz, damaged_npz()),
    "x_test.npy": (npy.read_npy, damaged(NPY["x"])),
    "test.csv": (csv_files.read, damaged(CSV)),
    "test.csv.gz": (csv_files.read, damaged_gz(CSV)),
    "digit.png": (predict.read_image, damaged_png()),
    "1.png": (class_folders.read_grey, damaged_png()),
    "1.gif": (class_folders.read_grey, damaged_picture("gif", "P")),
    "1.tif": (class_folders.read_grey, damaged_picture("tiff", "1")),
    "1.jpg": (class_folders.read_grey, damaged_picture("jpeg", "RGB")),
    "1.webp": (class_folders.read_grey, damaged_picture("webp", "RGB")),
}


@pytest.mark.filterwarnings("ignore")  # NumPy and Pillow warn of damage
@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_damaged_file_is_read_or_rejected(tmp_path_factory, name, data):
    read, strategy = READERS[name]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(strategy))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = read(str(path))
    except mnist.Error as error:
        assert len(str(error).splitlines()) <= 2  # noqa: PT017
    else:
        for array in found if isinstance(found, (list, tuple)) else [found]:
            assert array.dtype == np.uint8 or read is npy.read_npy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_KIB
