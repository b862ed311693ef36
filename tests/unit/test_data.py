"""Data sets from folders, downloads and scikit-learn: loaded, split, refused, identified by content."""

import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import shutil
import socket
import threading

import mnist
from mnist import data
from mnist.data import folders

import numpy as np
import pytest
from conftest import idx_bytes, random_examples

MNIST = pathlib.Path(__file__).parents[3] / "shared" / "mnist"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = folders.IDX_FILES


def load_error(*args, **kwargs):
    with pytest.raises(mnist.Error) as caught:
        data.load(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


def assert_same(dataset, other):
    for examples, others in zip(dataset[2:5], other[2:5], strict=True):
        for array, expected in zip(examples, others, strict=True):
            assert array.dtype == expected.dtype == np.uint8
            np.testing.assert_array_equal(array, expected)


def npz_arrays(dataset):
    (x_train, y_train), (x_test, y_test) = dataset.train, dataset.test
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


# Folders


def test_folder(idx_folder, monkeypatch):
    monkeypatch.chdir(idx_folder.parent)
    dataset = data.load("mnist", "tiny")
    images, labels = random_examples(60)
    assert (dataset.name, dataset.data_dir) == ("mnist", str(idx_folder))
    np.testing.assert_array_equal(dataset.train.images, images[..., np.newaxis])
    np.testing.assert_array_equal(dataset.train.labels, labels)
    assert dataset.test.images.shape == (20, 28, 28, 1)
    assert dataset.validation is dataset.test
    assert data.load("auto", "tiny").name == "tiny"


def test_other_forms_of_a_folder_load_the_same(idx_folder, tmp_path):
    """Gzipped files, names with a dot beside folders of the files' names, an npz in a folder, an npz by its path."""
    expected = data.load("mnist", str(idx_folder))
    zipped, dotted, npz = tmp_path / "zipped", tmp_path / "dotted", tmp_path / "npz"
    for folder in (zipped, dotted, npz):
        folder.mkdir()
    for file in idx_folder.iterdir():
        (zipped / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        (dotted / file.name.replace("-idx", ".idx")).write_bytes(file.read_bytes())
        (dotted / file.name).mkdir()  # some archives unpack each file into such a folder
    arrays = npz_arrays(expected)
    np.savez(npz / "mnist.npz", **arrays | {"x_train": np.asfortranarray(arrays["x_train"])})
    for path in (zipped, dotted, npz, npz / "mnist.npz"):
        assert_same(data.load("auto", str(path)), expected)


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not at hand")
def test_mnist_is_recognized_in_a_folder_of_any_name(tmp_path):
    (tmp_path / "some_files").symlink_to(MNIST)
    dataset = data.load("auto", str(tmp_path / "some_files"))
    assert dataset.name == "mnist"
    assert dataset.train.images.shape == (60_000, 28, 28, 1)
    assert dataset.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_missing_folder_and_files(tmp_path, idx_folder):
    assert load_error("mnist", str(tmp_path / "none")).endswith("none does not exist.")
    (tmp_path / "empty").mkdir()
    assert f"empty has no {TRAIN_IMAGES}[.gz], no mnist.npz" in load_error("mnist", str(tmp_path / "empty"))
    (idx_folder / TEST_LABELS).unlink()
    assert f"has no {TEST_LABELS}[.gz]" in load_error("mnist", str(idx_folder))


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({TRAIN_LABELS: np.arange(59, dtype=np.uint8) % 10}, "60 training images but 59 labels"),
        ({TEST_IMAGES: np.zeros([21, 28, 28], np.uint8)}, "21 test images but 20 labels"),
        ({TEST_LABELS: np.full(20, 10, np.uint8)}, "a test label is 10, expected 0 to 9"),
        ({TRAIN_IMAGES: random_examples(0)[0], TRAIN_LABELS: random_examples(0)[1]}, "no training images at all"),
        ({TEST_IMAGES: random_examples(0)[0], TEST_LABELS: random_examples(0)[1]}, "no test images at all"),
    ],
)
def test_files_that_do_not_fit(idx_folder, changes, trouble):
    for file, array in changes.items():
        (idx_folder / file).write_bytes(idx_bytes(array))
    assert trouble in load_error("mnist", str(idx_folder))


def test_holdout_is_the_end_of_the_training_set(idx_folder):
    whole = data.load("mnist", str(idx_folder))
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
    for examples, count in ((dataset.train, 1500), (dataset.test, 297)):
        assert examples.images.shape == (count, 28, 28, 1)
        assert examples.images.dtype == examples.labels.dtype == np.uint8
        assert examples.images.max() == 255
        assert set(examples.labels) == set(range(10))
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


def publish_mnist(store, dataset, monkeypatch):
    file = io.BytesIO()
    np.savez(file, **npz_arrays(dataset))
    (store / "mnist.npz").write_bytes(file.getvalue())
    monkeypatch.setattr(data.download, "MNIST_SHA256", hashlib.sha256(file.getvalue()).hexdigest())


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


def test_download_of_mnist(store, keras_home, idx_folder, monkeypatch):
    expected = data.load("mnist", str(idx_folder))
    publish_mnist(store, expected, monkeypatch)
    dataset = data.load("auto")
    assert (dataset.name, dataset.data_dir) == ("mnist", None)
    assert_same(dataset, expected)
    assert (keras_home / "datasets" / "mnist.npz").exists()
    (store / "mnist.npz").unlink()
    assert_same(data.load("mnist"), expected)  # from the cache


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
