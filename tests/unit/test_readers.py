"""Files as they come: sound, damaged, hostile."""

import contextlib
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
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGES, LABELS = random_examples(3)
ARRAYS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]}
IDX = idx_bytes(IMAGES)
GZ = gzip.compress(IDX)
FOUR_BILLION = IDX[:4] + b"\xff\xff\xff\xff" + IDX[8:]
MANY_BLANKS = idx_bytes(np.zeros([100_000, 28, 28], np.uint8))  # 78 MB, 76 kB when packed

# What is wrong: name and content of the file, and words that the message must hold.
BAD_IMAGES = {
    "empty": ("images", b"", "is empty"),
    "empty gz": ("images.gz", b"", "is empty"),
    "text": ("images", b"five, zero, four", "not an IDX file of images"),
    "labels": ("images", idx_bytes(LABELS), "magic number 0x00000801, expected 0x00000803"),
    "magic cut short": ("images", IDX[:3], "magic number"),
    "header cut short": ("images", IDX[:10], "truncated within its header"),
    "gz of nothing": ("images.gz", gzip.compress(b""), "magic number"),
    "32x32": ("images", idx_bytes(np.zeros([3, 32, 32], np.uint8)), "images are uint8 [3, 32, 32], expected uint8"),
    "last bytes missing": ("images", IDX[:-5], "only 2,347 bytes of images where its header claims 2,352"),
    "most bytes missing": ("images", IDX[:100], "claims 3 images, more than a file of 100 bytes holds"),
    "trailing byte": ("images", IDX + b"\0", "more than 2,352 bytes"),
    "trailing byte in gz": ("images.gz", gzip.compress(IDX + b"\0"), "more than 2,352 bytes"),
    "not gzip": ("images.gz", IDX, "not a sound gzip file"),
    "gz cut short": ("images.gz", GZ[:-20], "truncated"),
    "gz cut in its header": ("images.gz", GZ[:5], "truncated"),
    "gz with a wrong checksum": ("images.gz", GZ[:-8] + bytes(4) + GZ[-4:], "not a sound gzip file"),
    "gz with damaged data": ("images.gz", GZ[:10] + b"\xff" + GZ[11:], "not a sound gzip file"),
    "four billion images": ("images", FOUR_BILLION, "claims 4,294,967,295 images"),
    "four billion in gz": ("images.gz", gzip.compress(FOUR_BILLION), "claims 4,294,967,295 images"),
    "gz bomb": ("images.gz", gzip.compress(MANY_BLANKS, 1), "claims 100,000 images"),
    "gz bomb behind the images": ("images.gz", gzip.compress(IDX + MANY_BLANKS, 1), "more than 2,352 bytes"),
}
BAD_LABELS = {
    "images": ("labels", IDX, "not an IDX file of labels"),
    "one label missing": ("labels", idx_bytes(LABELS)[:-1], "only 2 bytes of labels"),
    "trailing label": ("labels", idx_bytes(LABELS) + b"\1", "more than 3 bytes of labels"),
}


def read_error(read, path):
    """The message of the Error that reading brings: short, naming the file, at no cost of memory."""
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


def read_npz(path):
    """All arrays of an npz file, by their names."""
    for name in ("x_train", "x_test"):
        readers.count_images(path, name)
    read = {"x": readers.read_images, "y": readers.read_labels}
    return {name: read[name[0]](path, name) for name in readers.NPZ_NAMES}


def rows(table):
    return pytest.mark.parametrize(("name", "content", "trouble"), table.values(), ids=table.keys())


@rows(BAD_IMAGES)
def test_bad_images(tmp_path, name, content, trouble):
    path = tmp_path / name
    path.write_bytes(content)
    assert trouble in read_error(readers.read_images, path)


@rows(BAD_LABELS)
def test_bad_labels(tmp_path, name, content, trouble):
    path = tmp_path / name
    path.write_bytes(content)
    assert trouble in read_error(readers.read_labels, path)


def test_missing_file_and_folder(tmp_path):
    for read in (readers.read_images, readers.read_labels, read_npz):
        assert "No such file" in read_error(read, tmp_path / "none")
        assert "directory" in read_error(read, tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_raw_gz_and_npz_bring_the_same(tmp_path, save):
    (tmp_path / "images").write_bytes(IDX)
    (tmp_path / "images.gz").write_bytes(GZ)
    (tmp_path / "labels").write_bytes(idx_bytes(LABELS))
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx_bytes(LABELS)))
    save(tmp_path / "mnist.npz", **ARRAYS)
    arrays = read_npz(str(tmp_path / "mnist.npz"))
    for images in (
        readers.read_images(str(tmp_path / "images")),
        readers.read_images(str(tmp_path / "images.gz")),
        arrays["x_train"],
    ):
        check_images(images)
        np.testing.assert_array_equal(images, IMAGES[..., np.newaxis])
    for labels in (
        readers.read_labels(str(tmp_path / "labels")),
        readers.read_labels(str(tmp_path / "labels.gz")),
        arrays["y_train"],
    ):
        check_labels(labels)
        np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_array_equal(arrays["x_test"], IMAGES[:2, ..., np.newaxis])
    np.testing.assert_array_equal(arrays["y_test"], LABELS[:2])


def test_npz_of_other_layouts(tmp_path):
    """Wide or big-endian labels, a channel axis, Fortran's order: all become what the rest expects."""
    path = tmp_path / "mnist.npz"
    images = np.asfortranarray(IMAGES[..., np.newaxis])
    np.savez(path, **ARRAYS | {"x_train": images, "y_train": LABELS.astype(">i8"), "more": np.zeros(3)})
    arrays = read_npz(str(path))
    check_images(arrays["x_train"])
    check_labels(arrays["y_train"])
    np.testing.assert_array_equal(arrays["x_train"], images)
    np.testing.assert_array_equal(arrays["y_train"], LABELS)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"x_train": IMAGES / 255}, "x_train is float64 [3, 28, 28], expected uint8 [N, 28, 28]"),
        ({"x_test": IMAGES.reshape(3, 784)}, "x_test is uint8 [3, 784]"),
        ({"x_train": np.zeros([3, 32, 32, 3], np.uint8)}, "x_train is uint8 [3, 32, 32, 3]"),
        ({"y_train": np.eye(10)[LABELS]}, "y_train is float64 [3, 10], expected integers [N]"),
        ({"y_test": np.array(["5", "0"])}, "y_test is <U1 [2], expected integers"),
        ({"y_train": np.array([1, -1, 2])}, "labels from -1 to 2, expected 0 to 255"),
        ({"y_train": np.array([1, 1000, 2])}, "labels from 1 to 1000, expected 0 to 255"),
        ({"y_train": np.array([1, None, 2])}, "it holds pickled objects"),
    ],
)
def test_npz_with_wrong_arrays(tmp_path, change, trouble):
    path = tmp_path / "mnist.npz"
    np.savez(path, **ARRAYS | change)
    assert trouble in read_error(read_npz, path)


def test_npz_without_the_keys(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, IMAGES, LABELS)
    assert "has no x_train, expected the arrays x_train, y_train, x_test, y_test" in read_error(read_npz, path)


@pytest.mark.parametrize(
    ("content", "trouble"),
    [(b"", "not a zip file"), (b"these are not the digits that you look for\n", "not a zip file")],
    ids=["empty", "text"],
)
def test_npz_that_is_none(tmp_path, content, trouble):
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    assert trouble in read_error(read_npz, path)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickles_are_never_run(tmp_path):
    """Neither one in an npz file nor one that only bears its name."""
    folder = tmp_path / "folder"
    objects, bare = tmp_path / "objects.npz", tmp_path / "mnist.npz"
    np.savez(objects, **ARRAYS | {"y_test": np.array([Payload(folder)], object)})
    bare.write_bytes(pickle.dumps(Payload(folder)))
    assert "it holds pickled objects" in read_error(read_npz, objects)
    assert "not a zip file" in read_error(read_npz, bare)
    assert not folder.exists()
    pickle.loads(bare.read_bytes())
    assert folder.exists(), "the payload is a dud, so this test shows nothing"


def npy_bytes(array, **header):
    """The bytes of a .npy file, its header changed if asked."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | header)
    return file.getvalue() + array.tobytes()


NPY = {f"{name}.npy": npy_bytes(array) for name, array in ARRAYS.items()}


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("member", "compression", "trouble"),
    [
        (b"", zipfile.ZIP_DEFLATED, "not a sound npz file"),
        (b"no array", zipfile.ZIP_DEFLATED, "not a sound npz file"),
        (npy_bytes(IMAGES)[:-1], zipfile.ZIP_DEFLATED, "not a sound npz file"),
        (npy_bytes(IMAGES) + b"\0", zipfile.ZIP_DEFLATED, "x_train holds more bytes than its header claims"),
        (npy_bytes(LABELS, descr="|u1" + " " * 20_000), zipfile.ZIP_DEFLATED, "not a sound npz file"),
        (MANY_BLANKS, zipfile.ZIP_DEFLATED, "would grow to 78,40"),
        (bytes(2**24), zipfile.ZIP_BZIP2, "x_train is not packed as NumPy packs it"),
    ],
    ids=["empty", "text", "cut short", "trailing byte", "huge header", "bomb", "bzip2 bomb"],
)
def test_npz_with_a_damaged_member(tmp_path, member, compression, trouble):
    path = tmp_path / "mnist.npz"
    path.write_bytes(zip_bytes(NPY | {"x_train.npy": member}, compression))
    assert trouble in read_error(read_npz, path)


@pytest.mark.parametrize("count", [2**20, 2**40])
def test_npz_with_a_huge_shape(tmp_path, count):
    """NumPy asks for all of it, but the system hands out only what is written to."""
    path = tmp_path / "mnist.npz"
    path.write_bytes(zip_bytes(NPY | {"x_train.npy": npy_bytes(IMAGES, shape=(count, 28, 28))}))
    with pytest.raises(mnist.Error, match="not a sound npz file"):
        read_npz(str(path))


def test_npz_member_of_a_bare_name_is_not_read(tmp_path):
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


def damaged(content):
    """Strategy of bytes: `content` with a few short stretches replaced, perhaps cut short."""
    length = len(content)
    start = st.one_of(st.integers(0, 40), st.integers(0, length - 1))  # headers are at the start
    edits = st.lists(st.tuples(start, st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)

    def apply(edits, end):
        changed = bytearray(content)
        for start, width, new in edits:
            changed[start : start + width] = new
        return bytes(changed[:end])

    return st.builds(apply, edits, st.one_of(st.just(2 * length), st.integers(0, length)))


def write(path, content):
    path.write_bytes(content)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


fuzz = settings(max_examples=100, deadline=None)


@fuzz
@given(content=damaged(IDX))
def test_any_bytes_raw(folder, content):
    with contextlib.suppress(mnist.Error):
        check_images(readers.read_images(write(folder / "images", content)))


@fuzz
@given(content=damaged(GZ) | damaged(IDX).map(gzip.compress))
def test_any_bytes_gz(folder, content):
    with contextlib.suppress(mnist.Error):
        check_images(readers.read_images(write(folder / "images.gz", content)))


@fuzz
@given(content=damaged(idx_bytes(LABELS)))
def test_any_bytes_labels(folder, content):
    with contextlib.suppress(mnist.Error):
        check_labels(readers.read_labels(write(folder / "labels", content)))


@fuzz
@given(
    content=damaged(zip_bytes(NPY))
    | st.builds(
        lambda name, content: zip_bytes(NPY | {name: content}),
        st.sampled_from(sorted(NPY)),
        damaged(NPY["y_train.npy"]) | damaged(NPY["x_test.npy"]),
    )
)
@pytest.mark.filterwarnings("ignore")  # numpy warns of a header that needs more parsing
def test_any_bytes_npz(folder, content):
    with contextlib.suppress(mnist.Error):
        for name, array in read_npz(write(folder / "mnist.npz", content)).items():
            (check_images if name.startswith("x_") else check_labels)(array)
