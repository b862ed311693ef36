"""Arrays and files that are sound, damaged or hostile: each is read exactly, or refused in one line at little cost."""

import functools
import gzip
import os
import pickle
import tracemalloc
import zipfile

import mnist
from mnist import data
from mnist.data import class_folders, csv_files, idx, npy

import numpy as np
import pytest
from conftest import csv_rows, idx_bytes, image_bytes, npy_bytes, random_examples, zip_bytes
from PIL import Image

Image.init()  # which takes memory once
IMAGES, LABELS = random_examples(3)
ARRAYS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]}
IDX, IDX_LABELS = idx_bytes(IMAGES), idx_bytes(LABELS)
GZ = gzip.compress(IDX)
FOUR_BILLION = IDX[:4] + b"\xff\xff\xff\xff" + IDX[8:]
MANY_BLANKS = idx_bytes(np.zeros([100_000, 28, 28], np.uint8))  # 78 MB, 76 kB when packed
ROWS = csv_rows(IMAGES, LABELS)
LABEL_LAST = csv_rows(np.array([[i + 1] * 783 + [i] for i in range(3)]), np.zeros(3, np.uint8))
GREY = Image.fromarray(IMAGES[0])
RED = Image.merge("RGB", [GREY, Image.new("L", GREY.size), GREY])
GLASS, LARGE, DEEP = Image.merge("LA", [GREY, GREY]), GREY.resize((32, 30)), GREY.convert("I").convert("I;16")


def with_member(content, compression=zipfile.ZIP_DEFLATED):
    members = {f"{name}.npy": npy_bytes(array) for name, array in ARRAYS.items()}
    return zip_bytes(members | {"x_train.npy": content}, compression)


def csv(*rows):
    return "\n".join(rows).encode()


# Each row: the name of a file, its content, and words of the message.
BAD = {
    "empty": ("images", b"", "is empty"),
    "labels for images": ("images", IDX_LABELS, "magic number 0x00000801, expected 0x00000803"),
    "last bytes missing": ("images", IDX[:-5], "only 2,347 bytes where the header claims 2,352"),
    "trailing byte": ("images", IDX + b"\0", "more than 2,352 bytes"),
    "gz cut short": ("images.gz", GZ[:-20], "truncated"),
    "gz with a wrong checksum": ("images.gz", GZ[:-8] + bytes(4) + GZ[-4:], "not a sound gzip file"),
    "four billion images": ("images", FOUR_BILLION, "claims 4,294,967,295 images"),
    "gz bomb behind the images": ("images.gz", gzip.compress(IDX + MANY_BLANKS, 1), "more than 2,352 bytes"),
    "objects": ("npz", with_member(npy_bytes(IMAGES, descr="|O")), "x_train: object [3, 28, 28], expected an array"),
    "trailing byte in npz": ("npz", with_member(npy_bytes(IMAGES) + b"\0"), "x_train: more than 2,352 bytes"),
    "npz bomb": ("npz", with_member(MANY_BLANKS), "would grow to 78,40"),
    "bzip2 bomb": ("npz", with_member(bytes(2**24), zipfile.ZIP_BZIP2), "x_train is not packed as NumPy packs it"),
    "npy with few bytes": ("npy", npy_bytes(IMAGES)[:-1], "only 2,351 bytes where the header claims 2,352"),
    "npy of a terabyte": ("npy", npy_bytes(IMAGES, shape=(2**40,)), "claims 1,099,511,627,776 bytes, more than"),
    "csv without labels": ("csv", csv(ROWS[0].partition(",")[2]), "no labels, as the test.csv of Kaggle. Split"),
    "csv with an index": ("csv", csv("0," + ROWS[0]), "has 786 columns, expected a label and 784"),
    "csv of floats": ("csv", csv(*ROWS, ROWS[0] + ".5"), "line 4, column 785 is '"),
    "csv above 255": ("csv", csv("label" + ",pixel" * 784, ROWS[0] + "00"), "line 2, column 785 is"),
    "csv of a signed label": ("csv", csv("5.0," + ROWS[0].partition(",")[2], *ROWS), "line 1, column 1 is '5.0', exp"),
    "csv with a missing number": ("csv", csv(*ROWS, "", ROWS[0].replace(",", ",,", 1)[:-4]), "line 5, column 2 is ''"),
    "csv with a short row": (
        "csv",
        csv(*ROWS, ROWS[0].partition(",")[2]),
        "line 4 has 784 columns, expected a label and",
    ),
    "csv cut short": ("csv", csv(*ROWS)[:-30], "line 3 has"),
    "csv with the label last": (
        "csv",
        csv(*LABEL_LAST),
        "the last one has all values from 0 to 2, as labels have. Put",
    ),
    "csv without a label": ("csv", csv("id" + ",pixel" * 784, *ROWS), "is 'id', expected the label. Name its"),
    "csv of names alone": ("csv", csv("label" + ",pixel" * 784), "holds no images"),
    "csv bomb": ("csv.gz", gzip.compress(bytes(2**24), 1), "line 1 is too long"),
    "large picture": ("png", image_bytes(LARGE), "has 32x30 pixels, expected 28x28. Convert a copy of all: Image."),
    "picture bomb": ("png", image_bytes(Image.new("1", (9000, 9000))), "has 9000x9000 pixels, expected 28x28"),
    "coloured picture": ("png", image_bytes(RED), "has colours, expected grey levels. Convert a copy"),
    "transparent picture": ("png", image_bytes(GLASS), "is partly transparent. Convert a copy"),
    "palette with a clear colour": ("gif", image_bytes(GREY, "gif", transparency=0), "is partly transparent"),
    "16 bits a pixel": ("png", image_bytes(DEEP), "Pillow's mode I;16, expected 8"),
    "moving picture": ("gif", image_bytes(GREY, "gif", save_all=True, append_images=[RED]), "has 2 frames"),
    "broken picture": ("png", image_bytes(GREY)[:200], "image file is truncated"),
    "text in place of a picture": ("png", b"five", "is not an image that can be read."),
}


def read_npz(path):
    """Returns all arrays of an npz file, by their names."""
    return {name: npy.read_npz(path, name) for name in ARRAYS}


READ = {
    "images": functools.partial(idx.read, what="images"),
    "labels": functools.partial(idx.read, what="labels"),
    "npz": read_npz,
    "npy": npy.read_npy,
    "csv": csv_files.read,
    **dict.fromkeys(("png", "gif"), class_folders.read_grey),
}


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
    for read in list(READ.values())[:5]:
        assert "No such file" in read_error(read, tmp_path / "none")
        assert "directory" in read_error(read, tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_any_type_and_layout_come_back(tmp_path, save):
    arrays = ARRAYS | {"x_train": np.asfortranarray(IMAGES), "y_test": LABELS.astype(">f4"), "more": np.zeros(3)}
    save(tmp_path / "a.npz", **arrays)
    np.save(tmp_path / "a.npy", arrays["x_train"])
    for name, array in read_npz(str(tmp_path / "a.npz")).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    np.testing.assert_array_equal(npy.read_npy(str(tmp_path / "a.npy")), IMAGES)


def check(array, expected):
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected)


BITS = IMAGES > 99
BLACK_OR_WHITE = np.where(BITS, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES[:, np.newaxis], IMAGES),
        (IMAGES.reshape(-1, 784), IMAGES),
        (np.asfortranarray(IMAGES), IMAGES),
        (IMAGES.astype(">i2"), IMAGES),
        (IMAGES.astype(np.float32), IMAGES),
        ((IMAGES / 255).astype(np.float16), IMAGES),
        (IMAGES.astype(np.float32) * np.float32(1 / 255), IMAGES),
        (np.asfortranarray(IMAGES / 255)[..., np.newaxis], IMAGES),
        (BITS, BLACK_OR_WHITE),
        (BITS.astype(np.float32), BLACK_OR_WHITE),
    ],
)
def test_forms_of_images(images, expected):
    check(data.Examples(images, LABELS).images, expected[..., np.newaxis])


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], LABELS.astype(">i8"), LABELS / 1, np.eye(10)[LABELS], np.eye(256, dtype=bool)[LABELS]],
)
def test_forms_of_labels(labels):
    check(data.Examples(IMAGES, labels).labels, LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "trouble"),
    [
        (IMAGES[:, :20], LABELS, "the images: uint8 [3, 20, 28], expected 28x28 grey images [N, 28, 28]. Resize them"),
        (
            np.stack([IMAGES] * 3, -1),
            LABELS,
            "[3, 28, 28, 3], expected 28x28 grey images [N, 28, 28]. Make colours grey, as",
        ),
        (IMAGES.astype(str), LABELS, "the images: <U3 [3, 28, 28], expected 28x28 grey"),
        (IMAGES.astype(int) - 1, LABELS, "the images: int64 from -1 to 254, expected grey levels"),
        (np.where(BITS, np.nan, 1), LABELS, "float64 from nan to nan, expected grey levels"),
        (IMAGES / 127.5 - 1, LABELS, "float64 from -1.0 to 1.0, expected grey levels from 0 to 255, or from 0 to 1. C"),
        (
            IMAGES / 256,
            LABELS,
            "0.99609375 that are not grey levels in steps of 1 or 1/255. Round them, as np.rint(255 * x",
        ),
        (IMAGES * 0.9, LABELS, "that are not grey levels in steps of 1 or 1/255. Round them, as np.rint(x)"),
        ((IMAGES // 2 + 127.125).astype(np.float16), LABELS, "that are not grey levels in steps of 1 or 1/255"),
        (IMAGES[:2], LABELS, "2 images and 3 labels"),
        (IMAGES, [1, 256, 2], "the labels: from 1 to 256, expected 0 to 255"),
        (IMAGES, [1, 0.5, 2], "the labels: float64 [3] with fractions, expected integers"),
        (IMAGES, [1, np.nan, 2], "the labels: from nan to nan, expected 0 to 255"),
        (
            IMAGES,
            ["cat", "dog", "cat"],
            "<U3 [3], expected integers [N]. Convert them, as the second result of np.unique",
        ),
        (IMAGES, [[1, 0], [1, 1], [0, 1]], "[3, 2] is not one-hot, because row 1 has 2 entries that are not 0"),
        (IMAGES, np.eye(3) * 0.9, "is not one-hot, because row 0 has 1 entries"),
    ],
)
def test_other_arrays_are_refused(images, labels, trouble):
    with pytest.raises(mnist.Error) as caught:
        data.Examples(images, labels)
    assert trouble in str(caught.value)


PIXELS = [f"pixel{i}" for i in range(784)]
QUOTED = ['"' + row.replace(",", '","') + '"' for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "end"),
    [
        (ROWS, "\r\n"),
        (ROWS, "\r"),
        ([",".join(["label", *PIXELS]), *QUOTED], "\n"),
        ([",".join(['"label"', *['"p"'] * 784]), *ROWS], "\r\n"),
        ([",".join([*PIXELS, "Class"]), *(",".join([*row.split(",")[1:], row.split(",")[0]]) for row in ROWS)], "\n"),
        ([",".join(map(str, range(785))), *ROWS], "\n"),
        ([row.replace(",", ";") for row in QUOTED], "\r"),
    ],
    ids=["Windows", "old Mac", "quoted", "named", "label last", "numbered columns", "semicolons"],
)
@pytest.mark.parametrize(("name", "pack"), [("train.csv", bytes), ("train.csv.gz", gzip.compress)])
def test_csv(tmp_path, rows, end, name, pack):
    (tmp_path / name).write_bytes(pack(("\ufeff" + end.join([*rows, "", ""])).encode()))
    assert csv_files.has_images(str(tmp_path / name))
    images, labels = csv_files.read(str(tmp_path / name))
    check(images, IMAGES[..., np.newaxis])
    check(labels, LABELS)


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (image_bytes(GREY), GREY),
        (image_bytes(GREY.convert("RGBA")), GREY),
        (image_bytes(GREY.convert("LA")), GREY),
        (image_bytes(GREY.quantize(256)), GREY.quantize(256).convert("L")),
        (image_bytes(GREY, "gif"), GREY),
        (image_bytes(GREY.convert("RGB"), "bmp"), GREY),
        (image_bytes(GREY.convert("RGB"), "webp", lossless=True), GREY),
        (image_bytes(Image.fromarray(BITS[0])), BLACK_OR_WHITE[0]),
        (image_bytes(Image.fromarray(BITS[0]), "tiff"), BLACK_OR_WHITE[0]),
        (image_bytes(GREY, exif=TURNED), GREY.transpose(Image.Transpose.ROTATE_270)),
    ],
)
def test_picture(tmp_path, content, expected):
    (tmp_path / "image").write_bytes(content)
    check(class_folders.read_grey(str(tmp_path / "image")), np.asarray(expected))


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
    assert "object [1], expected an array of numbers" in read_error(read_npz, objects)
    assert "not a zip file" in read_error(read_npz, bare)
    assert not folder.exists()
    pickle.loads(bare.read_bytes())
    assert folder.exists(), "the payload does not work, so this test shows nothing"


def test_npz_member_with_a_bare_name_is_not_read(tmp_path):
    """`np.load` would return a member `x_train` instead of `x_train.npy`, of any size and as bytes."""
    path = tmp_path / "mnist.npz"
    path.write_bytes(zip_bytes({"x_train": MANY_BLANKS, "x_train.npy": npy_bytes(IMAGES)}))
    check(npy.read_npz(str(path), "x_train"), IMAGES)
