"""The network: its size, its file, its crop, its dtypes."""

from mnist.model import CNN

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare_with_fit import make_sequential


def random_images(count=6, seed=0):
    return np.random.default_rng(seed).random((count, 28, 28, 1), np.float32)


def make_uncropped():
    """Makes the network of the tutorial, on all 28x28 pixels, with logits in place of the softmax."""
    model = make_sequential()
    model.layers[-1].activation = keras.activations.linear
    return model


def test_the_summary_has_shapes_and_the_number_of_parameters():
    lines = []
    CNN().summary(print_fn=lambda line, **_: lines.append(line))
    summary = "\n".join(lines)
    assert "?" not in summary
    assert "93,322" in summary
    for shape in ("(None, 24, 24, 32)", "(None, 3, 3, 64)", "(None, 576)", "(None, 10)"):
        assert shape in summary


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_saved_model_loads_with_its_configuration_and_weights(tmp_path, dtype):
    model = CNN(dtype=dtype, name="other")
    model.save(tmp_path / "cnn.keras")
    loaded = keras.saving.load_model(tmp_path / "cnn.keras")
    images = random_images()
    assert (loaded.name, loaded.dtype_policy.name) == ("other", dtype)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(images), model(images))


def test_bfloat16_has_float32_logits_and_variables():
    model, exact = CNN(dtype="mixed_bfloat16"), CNN()
    exact.set_weights(model.get_weights())
    images = random_images()
    logits = model(images)
    assert logits.dtype == tf.float32
    assert {v.dtype for v in model.variables} == {"float32"}
    assert not np.array_equal(logits, exact(images))  # the hidden layers computed in bfloat16
    np.testing.assert_allclose(logits, exact(images), atol=0.02)


@pytest.mark.parametrize("batch_size", [1, 32, 64])
def test_the_crop_keeps_every_bit_of_logits_and_gradients(batch_size):
    cropped, uncropped = CNN(), make_uncropped()
    cropped.set_weights(uncropped.get_weights())
    images = tf.constant(random_images(batch_size))
    labels = tf.one_hot(tf.range(batch_size) % 10, 10)

    def logits_and_gradients(model):
        with tf.device("CPU"), tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
        return [logits, *tape.gradient(loss, [v.value for v in model.trainable_variables])]

    for ours, theirs in zip(logits_and_gradients(cropped), logits_and_gradients(uncropped), strict=True):
        assert np.any(theirs)
        np.testing.assert_array_equal(ours, theirs)
