"""The step, the loop over it and the network: exact values, exact replays, no retracing."""

from mnist import Error
from mnist.data import train_batches
from mnist.model import CNN
from mnist.settings import Setting
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare_with_fit import make_sequential


def make_step(cls=TrainStep, seed=0):
    keras.utils.set_random_seed(seed)
    return cls(CNN(), keras.optimizers.Adam(), seed=seed)


def test_the_loop_is_traced_once_for_any_length(digits):
    step = make_step()
    batches, (_, loop) = iter(train_batches(digits.train, 64, seed=0)), make_train_loop(step)
    for steps in (20, 4, 24):  # step 24 has the last 28 of 1,500 images
        loop(batches, tf.constant(steps))
    assert loop.experimental_get_tracing_count() == 1


def test_a_subclass_that_replaces_an_attribute_of_the_base_is_refused():
    class Replacing(TrainStep):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._averaging = 0.9

    needed = "replaces an attribute that TrainStep needs"
    with pytest.raises(Error, match=rf"^Replacing\._averaging {needed}: .*\.$"):
        make_step(Replacing)
    with pytest.raises(Error, match=rf"^Replacing\.view {needed}"):
        type("Replacing", (TrainStep,), {"view": Setting(3, "A setting.")})


def test_random_seeds_depend_on_seed_step_and_purpose():
    def draw(seed=0, iterations=0, purpose="mixup"):
        step = make_step(seed=seed)
        step.iterations.assign(iterations)
        return tuple(step.random_seed(purpose).numpy())

    draws = [draw(), draw(seed=1), draw(iterations=1), draw(purpose="augment")]
    assert len(set(draws)) == 4
    assert draw() == draws[0]


def test_bfloat16_has_float32_logits_and_variables():
    model, exact = CNN(dtype="mixed_bfloat16"), CNN()
    exact.set_weights(model.get_weights())
    images = np.random.default_rng(0).random([6, 28, 28, 1], np.float32)
    logits = model(images)
    assert logits.dtype == tf.float32
    assert {v.dtype for v in model.variables} == {"float32"}
    assert not np.array_equal(logits, exact(images))  # the hidden layers computed in bfloat16
    np.testing.assert_allclose(logits, exact(images), atol=0.02)


@pytest.mark.parametrize("batch_size", [1, 32, 64])
def test_the_crop_keeps_every_bit_of_logits_and_gradients(batch_size):
    cropped, uncropped = CNN(), make_sequential()  # the network of the tutorial, on all 28x28 pixels
    uncropped.layers[-1].activation = keras.activations.linear  # in place of the softmax
    cropped.set_weights(uncropped.get_weights())
    images = tf.constant(np.random.default_rng(0).random([batch_size, 28, 28, 1], np.float32))
    labels = tf.one_hot(tf.range(batch_size) % 10, 10)

    def logits_and_gradients(model):
        with tf.device("CPU"), tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
        return [logits, *tape.gradient(loss, [v.value for v in model.trainable_variables])]

    for ours, theirs in zip(logits_and_gradients(cropped), logits_and_gradients(uncropped), strict=True):
        assert np.any(theirs)
        np.testing.assert_array_equal(ours, theirs)
