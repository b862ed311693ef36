"""Data sets from folders, downloads and scikit-learn: loaded, split, refused, identified by content."""

import functools
import gzip
import hashlib
import http.server
import pathlib
import shutil
import socket
import sys
import threading

import mnist
from mnist import data
from mnist.data import folders

import numpy as np
import pytest
from conftest import csv_rows, idx_bytes, image_bytes, npy_bytes, npz_bytes, random_examples
from PIL import Image

MNIST = pathlib.Path(__file__).parents[3] / "shared" / "mnist"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = folders.IDX_FILES


def load_error(*args, **kwargs):
    with pytest.raises(mnist.Error) as caught:
        data.load(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


def assert_equal(examples, others):
    for array, expected in zip(examples, others, strict=True):
        assert array.dtype == expected.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)


def assert_same(dataset, other):
    for examples, others in zip(dataset[2:5], other[2:5], strict=True):
        assert_equal(examples, others)


def write(folder, files):
    """Writes files, a dict from paths to bytes. A path that ends in a slash is a folder. Returns `folder`."""
    for name, content in {"./": b"", **files}.items():
        (folder / name.rpartition("/")[0]).mkdir(parents=True, exist_ok=True)
        if name[-1] != "/":
            (folder / name).write_bytes(content)
    return folder


# Folders. Each row is the data set of `idx_folder` in another layout, files by their names.

RAW = {}
for part, seed, count in (("train", 0, 60), ("t10k", 1, 20)):
    images, labels = random_examples(count, seed)
    RAW |= {f"{part}-images-idx3-ubyte": idx_bytes(images), f"{part}-labels-idx1-ubyte": idx_bytes(labels)}
GZ = {f"{name}.gz": gzip.compress(content) for name, content in RAW.items()}
(X, Y), (X_TEST, Y_TEST) = random_examples(60), random_examples(20, 1)
ARRAYS = {"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST}
MEDMNIST = {"train_images": X[:45], "train_labels": Y[:45, None], "val_images": X[45:], "val_labels": Y[45:, None]}
MEDMNIST |= {"test_images": X_TEST, "test_labels": Y_TEST[:, None]}
CSV = {part: "\n".join(csv_rows(ARRAYS[f"x_{part}"], ARRAYS[f"y_{part}"])).encode() for part in ("train", "test")}
LAYOUTS = {
    "gz": GZ,
    "as torchvision leaves it": {f"MNIST/raw/{name}": content for name, content in (RAW | GZ).items()},
    # Some archives unpack each file into a folder of its name.
    "dots": {name.replace("-idx", ".idx"): RAW[name] for name in RAW} | {f"{name}/": b"" for name in RAW},
    "npz": {"any.npz": npz_bytes(ARRAYS)},
    "npz of MedMNIST": {"any.npz": npz_bytes(MEDMNIST)},
    "npy": {f"{name.replace('x_', 'Images-')}.npy": npy_bytes(array) for name, array in ARRAYS.items()},
    "csv": {"mnist_train.csv": CSV["train"], "mnist_test.csv": CSV["test"], "train.csv": b"name,class\n1.png,7\n"},
    "csv.gz": {f"{part}.csv.gz": gzip.compress(content) for part, content in CSV.items()},
}


@pytest.fixture
def whole(idx_folder):
    return data.load("mnist", str(idx_folder))


def test_folder(idx_folder, monkeypatch):
    monkeypatch.chdir(idx_folder.parent)
    dataset = data.load("mnist", "tiny")
    assert (dataset.name, dataset.data_dir) == ("mnist", str(idx_folder))
    assert_equal(dataset.train, (X[..., np.newaxis], Y))
    assert_equal(dataset.test, (X_TEST[..., np.newaxis], Y_TEST))
    assert dataset.validation is dataset.test
    assert data.load("auto", "tiny").name == "tiny"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_load_the_same(whole, tmp_path, layout):
    folder = write(tmp_path / "other", LAYOUTS[layout])
    dataset = data.load("auto", str(folder))
    assert dataset.name == "other"
    assert (dataset.validation is dataset.test) == ("MedMNIST" not in layout)
    assert_same(dataset, whole if dataset.validation is dataset.test else whole.hold_out(15))
    if dataset.validation is not dataset.test:
        assert "has 15 validation images of its own: leave it out" in load_error("auto", str(folder), 5)
    if layout == "npz":
        assert_same(data.load("auto", str(folder / "any.npz")), whole)


@pytest.mark.parametrize("layout", ["npz", "npz of MedMNIST", "npy", "csv", "csv.gz"])
def test_two_data_sets_in_one_folder_are_refused(idx_folder, layout):
    message = load_error("auto", str(write(idx_folder, LAYOUTS[layout])))
    assert f"--data_dir={idx_folder} holds more than one data set, " in message
    assert ("as --data_dir=" in message) == ("npz" in layout)


def test_other_files_beside_a_data_set(idx_folder, whole):
    """An npz file of features and a gzip file of the same bytes are ignored. One of other bytes is refused."""
    write(idx_folder, GZ | {"features.npz": npz_bytes({"features": [1]})})
    assert_same(data.load("mnist", str(idx_folder)), whole)
    write(idx_folder, {f"{TRAIN_IMAGES}.gz": gzip.compress(RAW[TRAIN_IMAGES][:-1] + b"?")})
    found = f"holds {TRAIN_IMAGES} and {TRAIN_IMAGES}.gz, whose content is different: remove one."
    assert found in load_error("auto", str(idx_folder))


def pictures(part, examples, names):
    """Returns PNG files in the folders of their classes, whose names are in the order of the images."""
    rows = enumerate(zip(*examples, strict=True))
    files = {f"{part}/{names[y]}/{i:03}.png": image_bytes(Image.fromarray(x.reshape(28, 28))) for i, (x, y) in rows}
    return files | {f"{part}/{names[1]}/Thumbs.db": b"?", f"{part}/.DS_Store": b"?", f"{part}/__MACOSX/": b""}


@pytest.mark.parametrize(
    ("names", "expected", "inner"),
    [
        ([str(20 - 2 * i) for i in range(10)], [str(2 + 2 * i) for i in range(10)], "a/b/"),
        (["b", "a", *"CDEFGHIJ"], [*"CDEFGHIJ", "a", "b"], ""),
    ],
)
def test_folders_of_classes(whole, tmp_path, names, expected, inner):
    """Integers are in numeric order, other names as torchvision sorts them. A folder may hold another one alone."""
    parts = {"Training": whole.train, "valid": whole.test, "test": whole.train}
    for part, examples in parts.items():
        write(tmp_path / "other", pictures(inner + part, examples, names))
    dataset = data.load("auto", str(tmp_path / "other"))
    assert (dataset.classes, dataset.name) == (tuple(expected), "other")
    for examples, source in zip(dataset[2:5], parts.values(), strict=True):
        labels = np.array([expected.index(names[label]) for label in source.labels])
        order = np.argsort(labels, kind="stable")
        assert_equal(examples, data.Examples(source.images[order], labels[order]))
    (tmp_path / "other" / inner / "classes.txt").write_text("\n".join(expected[::-1]))
    assert "label 0 in classes.txt, but label 9 in the order of" in load_error("auto", str(tmp_path / "other"))


def test_a_test_set_alone_is_for_evaluation(whole, tmp_path):
    test = {"t10k": {name: RAW[name] for name in (TEST_IMAGES, TEST_LABELS)}, "csv": {"test.csv": CSV["test"]}}
    test["npz"] = {"a.npz": npz_bytes({name: ARRAYS[name] for name in ("x_test", "y_test")})}
    paths = [write(tmp_path / name, files) for name, files in test.items()]
    for path in (*paths, tmp_path / "csv" / "test.csv"):
        assert "has no training set, so that only mnist.evaluate takes it." in load_error("auto", str(path))
        found = data.load_test("auto", str(path), data.DIGITS)
        assert (found.name, found.classes) == (path.name, data.DIGITS)
        assert_equal(found.test, whole.test)


def test_pictures_for_evaluation_have_the_labels_of_the_model(whole, tmp_path):
    images = whole.test.images[:4]
    for names in (("cow", "ant"), ("2", "0")):
        folder = write(tmp_path / names[0], pictures("test", (images, [0, 1, 1, 0]), names))
        found = data.load_test("auto", str(folder), ("ant", "bee", "cow"))
        assert found.classes == ("ant", "bee", "cow")
        order = [1, 2, 0, 3] if found.test.labels[0] == 0 else [0, 3, 1, 2]
        assert_equal(found.test, data.Examples(images[order], np.array([2, 0, 0, 2])[order]))
    for name, classes in (("cow", ("ant", "bee")), ("2", ("0", "1", "4"))):
        with pytest.raises(mnist.Error, match=f"the class '{name}', which the model does not have"):
            data.load_test("auto", str(tmp_path / name), classes)


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not at hand")
def test_mnist_is_recognized_in_a_folder_of_any_name(tmp_path):
    (tmp_path / "some_files").symlink_to(MNIST)
    dataset = data.load("auto", str(tmp_path / "some_files"))
    assert dataset.name == "mnist"
    assert dataset.train.images.shape == (60_000, 28, 28, 1)
    assert dataset.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize(
    ("names", "trouble"),
    [
        ("", ": it holds nothing, expected IDX files of MNIST or EMNIST, npz files"),
        ("a.txt b/", ": it holds b, a.txt, expected IDX"),
        ("a/2.png b/1.jpg", ": it holds the classes a, b without a test set. Move these folders into a folder train, "),
        ("train/2/1.png", "has no test set. Add its files, or keep some of the training images for it."),
        ("train/1/1.png test/1/1.png test/2/1.png", "test/2 holds no images of a training class, of 1."),
        ("train/1/1.png train/1/a/1.png test/1/1.png", "train/1/a is a folder, expected the images of class 1."),
        ("train/1/1.png train/2/a.txt test/1/1.png", "train/2 holds no images of a training class, of 1."),
        ("train/1/1.png Train/1/1.png", "train, expected one of them."),
        ("train.parquet a.txt", "train.parquet is not a data set that can be read. Convert it: write each image of"),
        ("a.tfrecord-00000-of-00001", "is not a data set that can be read. Convert it: tfds.as_numpy("),
        ("mnist.pkl.gz", "np.rint(256 * x).astype(np.uint8) for the file of deeplearning.net."),
        ("mnist.tar.gz", "Convert it: unpack it, and name the folder."),
        ("x_train.npy x_test.npy", "x_train.npy has no training labels beside it."),
        (f"{TRAIN_LABELS} {TEST_LABELS}", f"{TRAIN_LABELS}: labels has no training images beside it."),
    ],
)
def test_a_folder_without_a_data_set(tmp_path, names, trouble):
    folder = write(tmp_path / "other", dict.fromkeys(names.split(), image_bytes(Image.new("L", (28, 28)))))
    assert trouble in load_error("auto", str(folder))


def test_other_files_are_refused(tmp_path, idx_folder):
    assert load_error("mnist", str(tmp_path / "none")).endswith("none does not exist.")
    assert "is one array of a data set: name the folder" in load_error("auto", str(idx_folder / TRAIN_IMAGES))
    for arrays, trouble in (
        ({"arr_0": [1]}, "holds arr_0, expected the arrays x_train, y_train, x_test and y_test, or train_images"),
        (ARRAYS | {"train_x": [1]}, "holds both x_train and train_x, expected one of them."),
    ):
        write(tmp_path, {"own.npz": npz_bytes(arrays)})
        assert trouble in load_error("auto", str(tmp_path / "own.npz"))


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({TRAIN_LABELS: np.arange(59, dtype=np.uint8) % 10}, "60 training images but 59 labels"),
        ({TEST_LABELS: np.full(20, 10, np.uint8)}, "a test label is 10, expected 0 to 9"),
        ({TRAIN_IMAGES: random_examples(0)[0], TRAIN_LABELS: random_examples(0)[1]}, "no training images at all"),
    ],
)
def test_files_that_do_not_fit(idx_folder, changes, trouble):
    for file, array in changes.items():
        (idx_folder / file).write_bytes(idx_bytes(array))
    assert trouble in load_error("mnist", str(idx_folder))


def test_holdout_is_the_end_of_the_training_set(idx_folder, whole):
    dataset = data.load("mnist", str(idx_folder), holdout=15)
    assert (len(dataset.train.labels), len(dataset.validation.labels)) == (45, 15)
    for parts, array in zip(zip(dataset.train, dataset.validation, strict=True), whole.train, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), array)
    np.testing.assert_array_equal(dataset.test.images, whole.test.images)
    for holdout in (60, 61):
        message = load_error("mnist", str(idx_folder), holdout)
        assert f"--holdout={holdout} leaves none of 60 training images" in message


def test_digits(idx_folder):
    dataset = data.load("digits")
    assert (dataset.name, dataset.data_dir) == ("digits", None)
    for examples in (dataset.train, dataset.test):
        assert examples.images.max() == 255
        frame = examples.images.copy()
        frame[:, 4:24, 4:24] = 0
        assert not frame.any()
    assert_same(dataset, data.load("digits"))
    assert "leave out --data_dir" in load_error("digits", str(idx_folder))


# Downloads


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty cache, so that no file of this machine is found."""
    home = tmp_path / "keras"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    return home


@pytest.fixture
def no_network(keras_home, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so that connections are refused
        monkeypatch.setattr(data.download, "STORE", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        yield


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def store(tmp_path, keras_home, monkeypatch):
    """A folder that a server on this machine serves in place of the store."""
    folder = tmp_path / "store"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(data.download, "STORE", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()
        thread.join()


def publish_mnist(store, monkeypatch):
    content = npz_bytes(ARRAYS)
    (store / "mnist.npz").write_bytes(content)
    monkeypatch.setattr(data.download, "MNIST_SHA256", hashlib.sha256(content).hexdigest())


def test_without_network_auto_takes_digits_with_a_warning_and_names_are_refused(no_network, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        assert data.load("auto").name == "digits"
    assert "cannot download" in caplog.text
    assert "DIGITS" in caplog.text
    for name in ("mnist", "fashion_mnist"):
        message = load_error(name)
        assert "cannot download http://127.0.0.1" in message
        assert "--data_dir=FOLDER" in message
        assert "--dataset=digits" in message


@pytest.mark.parametrize("is_terminal", [False, True])
def test_download_of_mnist(store, keras_home, whole, monkeypatch, capsys, is_terminal):
    publish_mnist(store, monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    dataset = data.load("auto")
    printed = capsys.readouterr().out
    assert "Downloading data" in printed if is_terminal else not printed
    assert (dataset.name, dataset.data_dir) == ("mnist", None)
    assert_same(dataset, whole)
    assert (keras_home / "datasets" / "mnist.npz").exists()
    (store / "mnist.npz").unlink()
    assert_same(data.load("mnist"), whole)  # from the cache


def test_download_of_a_missing_or_wrong_file(store):
    assert "404" in load_error("mnist")
    (store / "mnist.npz").write_bytes(b"not what was published")
    message = load_error("mnist")
    assert "cannot download" in message
    assert "hash does not match" in message


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(20_000)])
def test_a_silent_server_is_given_up(keras_home, monkeypatch, answer):
    monkeypatch.setattr(data.download, "STALL_SECONDS", 1)
    connections = []

    def serve(server):
        connection, _ = server.accept()
        connections.append(connection)
        connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        monkeypatch.setattr(data.download, "STORE", f"http://127.0.0.1:{server.getsockname()[1]}/")
        try:
            assert "timed out" in load_error("mnist")
        finally:
            thread.join()
            connections[0].close()


# The digest


def test_digest_depends_on_content_and_holdout_but_not_on_the_name(idx_folder, tmp_path):
    dataset = data.load("mnist", str(idx_folder))
    copy = shutil.copytree(idx_folder, tmp_path / "copy")
    assert data.load("auto", str(copy)).digest() == dataset.digest()
    assert len({data.load("mnist", str(idx_folder), holdout).digest() for holdout in (0, 10, 20)}) == 3
    for name in folders.IDX_FILES:
        content = (idx_folder / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert data.load("auto", str(copy)).digest() != dataset.digest()
        (copy / name).write_bytes(content)
