"""The SavedModel: what it takes and gives, and that the folder is whole or not there."""

import resource

import mnist
from mnist.export import export
from mnist.model import CNN, scale_images

import numpy as np
import pytest
import tensorflow as tf


def random_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_serves_what_the_model_computes(tmp_path, dtype):
    model = CNN(dtype=dtype)
    export(model, str(tmp_path / "served"))
    serve = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("images", tf.uint8, [None, 28, 28, 1])
    for count in (1, 5):
        images = random_images(count)
        served = {name: value.numpy() for name, value in serve(images=tf.constant(images)).items()}
        logits = model(scale_images(images), training=False).numpy()
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(served["logits"], logits, atol=tolerance)
        np.testing.assert_array_equal(served["digit"], served["logits"].argmax(axis=1))
        np.testing.assert_allclose(served["probabilities"], tf.nn.softmax(served["logits"]), rtol=1e-5)
        np.testing.assert_allclose(served["probabilities"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["new/deep/served", "served/"])
def test_makes_the_folder(tmp_path, name):
    export(CNN(), f"{tmp_path}/{name}")
    assert (tmp_path / name / "saved_model.pb").is_file()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["served"]


def test_existing_output_is_left_alone(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    for output in (folder, file):
        with pytest.raises(mnist.Error, match="exists already"):
            export(CNN(), str(output))
    assert (folder / "mine.txt").read_text() == file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "mine.txt"]


def test_neighbours_are_left_alone(tmp_path):
    (tmp_path / "served.tmp").mkdir()
    (tmp_path / "served.tmp" / "mine.txt").write_text("mine")
    export(CNN(), str(tmp_path / "served"))
    assert (tmp_path / "served.tmp" / "mine.txt").read_text() == "mine"


def test_a_file_as_parent(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(mnist.Error, match="cannot write") as raised:
        export(CNN(), str(tmp_path / "file" / "served"))
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_stays_when_writing_fails_midway(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = CNN()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights take 373 kB
    try:
        with pytest.raises(mnist.Error, match="cannot write") as raised:
            export(model, str(tmp_path / "served"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
