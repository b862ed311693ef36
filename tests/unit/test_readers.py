"""Files that are sound, damaged or hostile: each is read, or refused in one line at no cost of memory."""

import gzip
import io
import os
import pickle
import tracemalloc
import zipfile

import mnist
from mnist.data import readers

import numpy as np
import pytest
from conftest import idx_bytes, random_examples

IMAGES, LABELS = random_examples(3)
ARRAYS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]}
IDX, IDX_LABELS = idx_bytes(IMAGES), idx_bytes(LABELS)
GZ = gzip.compress(IDX)
FOUR_BILLION = IDX[:4] + b"\xff\xff\xff\xff" + IDX[8:]
MANY_BLANKS = idx_bytes(np.zeros([100_000, 28, 28], np.uint8))  # 78 MB, 76 kB when packed


def npy_bytes(array, **header):
    """Returns the bytes of a .npy file, with changes to its header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | header)
    return file.getvalue() + array.tobytes()


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


NPY = {f"{name}.npy": npy_bytes(array) for name, array in ARRAYS.items()}


def with_member(content, compression=zipfile.ZIP_DEFLATED):
    return zip_bytes(NPY | {"x_train.npy": content}, compression)


def npz_bytes(**changes):
    file = io.BytesIO()
    np.savez(file, **ARRAYS | changes)
    return file.getvalue()


# Each row: the name of a file, its content, and words of the message.
BAD = {
    "empty": ("images", b"", "is empty"),
    "text": ("images", b"five, zero, four", "not an IDX file of images"),
    "labels for images": ("images", IDX_LABELS, "magic number 0x00000801, expected 0x00000803"),
    "32x32": ("images", idx_bytes(np.zeros([3, 32, 32], np.uint8)), "images are uint8 [3, 32, 32], expected uint8"),
    "last bytes missing": ("images", IDX[:-5], "only 2,347 bytes of images where its header claims 2,352"),
    "trailing byte": ("images", IDX + b"\0", "more than 2,352 bytes"),
    "gz cut short": ("images.gz", GZ[:-20], "truncated"),
    "gz with a wrong checksum": ("images.gz", GZ[:-8] + bytes(4) + GZ[-4:], "not a sound gzip file"),
    "four billion images": ("images", FOUR_BILLION, "claims 4,294,967,295 images"),
    "gz bomb": ("images.gz", gzip.compress(MANY_BLANKS, 1), "claims 100,000 images"),
    "gz bomb behind the images": ("images.gz", gzip.compress(IDX + MANY_BLANKS, 1), "more than 2,352 bytes"),
    "float images": ("npz", npz_bytes(x_train=IMAGES / 255), "x_train is float64 [3, 28, 28], expected uint8 [N, 28"),
    "label above 255": ("npz", npz_bytes(y_train=np.array([1, 256, 2])), "labels from 1 to 256, expected 0 to 255"),
    "objects": ("npz", npz_bytes(y_train=np.array([1, None, 2])), "allow_pickle=False"),
    "other keys": ("npz", zip_bytes({"arr_0.npy": NPY["x_train.npy"]}), "has no x_train, expected the arrays x_tr"),
    "trailing byte in npz": ("npz", with_member(npy_bytes(IMAGES) + b"\0"), "x_train holds more bytes than its header"),
    "npz bomb": ("npz", with_member(MANY_BLANKS), "would grow to 78,40"),
    "bzip2 bomb": ("npz", with_member(bytes(2**24), zipfile.ZIP_BZIP2), "x_train is not packed as NumPy packs it"),
}


def read_npz(path):
    """Returns all arrays of an npz file, by their names."""
    read = {"x": readers.read_images, "y": readers.read_labels}
    return {name: read[name[0]](path, name) for name in readers.NPZ_NAMES}


READ = {"images": readers.read_images, "labels": readers.read_labels, "npz": read_npz}


def read_error(read, path):
    """Returns the message of a reader's error, checked to be short, to name the file, and to cost no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(mnist.Error) as caught:
            read(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 2
    assert peak < 2**20
    return message


@pytest.mark.parametrize(("name", "content", "trouble"), BAD.values(), ids=BAD.keys())
def test_bad_files(tmp_path, name, content, trouble):
    path = tmp_path / name
    path.write_bytes(content)
    assert trouble in read_error(READ[name.removesuffix(".gz")], path)


def test_missing_file_and_folder(tmp_path):
    for read in READ.values():
        assert "No such file" in read_error(read, tmp_path / "none")
        assert "directory" in read_error(read, tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_raw_gz_and_npz_give_the_same(tmp_path, save):
    """An npz also with wide or big-endian labels, a channel axis, in Fortran's order, and with other arrays."""
    files = {"images": IDX, "images.gz": GZ, "labels": IDX_LABELS, "labels.gz": gzip.compress(IDX_LABELS)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    other = {"x_test": np.asfortranarray(IMAGES[..., np.newaxis]), "y_test": LABELS.astype(">i8"), "more": np.zeros(3)}
    save(tmp_path / "mnist.npz", **ARRAYS | other)
    read = [READ[name.removesuffix(".gz")](str(tmp_path / name)) for name in files]
    arrays = read_npz(str(tmp_path / "mnist.npz"))
    for images in (*read[:2], arrays["x_train"], arrays["x_test"]):
        check_images(images)
        np.testing.assert_array_equal(images, IMAGES[..., np.newaxis])
    for labels in (*read[2:], arrays["y_train"], arrays["y_test"]):
        check_labels(labels)
        np.testing.assert_array_equal(labels, LABELS)


class Payload:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickles_are_never_run(tmp_path):
    """Neither a pickle in an npz file, nor a pickle with the name of an npz file."""
    folder = tmp_path / "folder"
    objects, bare = tmp_path / "objects.npz", tmp_path / "mnist.npz"
    np.savez(objects, **ARRAYS | {"y_test": np.array([Payload(folder)], object)})
    bare.write_bytes(pickle.dumps(Payload(folder)))
    assert "allow_pickle=False" in read_error(read_npz, objects)
    assert "not a zip file" in read_error(read_npz, bare)
    assert not folder.exists()
    pickle.loads(bare.read_bytes())
    assert folder.exists(), "the payload does not work, so this test shows nothing"


def test_npz_member_with_a_bare_name_is_not_read(tmp_path):
    """`np.load` would return a member `x_train` instead of `x_train.npy`, of any size and as bytes."""
    path = tmp_path / "mnist.npz"
    path.write_bytes(zip_bytes(NPY | {"x_train": MANY_BLANKS}))
    check_images(read_npz(str(path))["x_train"])


def check_images(images):
    assert images.dtype == np.uint8
    assert images.ndim == 4
    assert images.shape[1:] == (28, 28, 1)
    assert images.flags.c_contiguous


def check_labels(labels):
    assert labels.dtype == np.uint8
    assert labels.ndim == 1
