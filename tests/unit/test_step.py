"""The step and the loop over it: exact values, exact replays, no retracing."""

from mnist import Error, data
from mnist.data import train_batches
from mnist.model import CNN, scale_images
from mnist.settings import Setting
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture(scope="module")
def train():
    return data.load("digits").train


def make_step(cls=TrainStep, seed=0):
    keras.utils.set_random_seed(seed)
    return cls(CNN(), keras.optimizers.Adam(), seed=seed)


def weights_of(step):
    return b"".join(v.numpy().tobytes() for v in step.model.variables)


def run_loops(step, train, chunks, batch_size=64):
    batches = iter(train_batches(train, batch_size, seed=step.seed))
    _, loop = make_train_loop(step)
    results = [loop(batches, tf.constant(n))[0] for n in chunks]
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}, loop


def test_a_graph_scales_all_grey_levels_as_numpy_does():
    levels = np.arange(256, dtype=np.uint8)
    expected = (levels / 255.0).astype(np.float32)
    assert tf.function(scale_images)(levels).numpy().tobytes() == expected.tobytes()


def test_prepared_labels_are_one_hot():
    images, labels = make_step().prepare_batch(np.zeros([3, 28, 28, 1], np.uint8), np.array([0, 9, 4], np.uint8))
    assert images.dtype == tf.float32
    np.testing.assert_array_equal(labels, np.eye(10, dtype=np.float32)[[0, 9, 4]])


def test_loops_of_any_length_train_with_the_same_bits_and_one_trace(train):
    one, many = make_step(), make_step()
    scalars_one, _ = run_loops(one, train, [1] * 48)
    scalars_many, loop = run_loops(many, train, [20, 4, 24])  # step 24 has the last 28 of 1,500 images
    assert loop.experimental_get_tracing_count() == 1
    assert weights_of(one) == weights_of(many)
    for name in ("loss", "accuracy"):
        assert scalars_one[name].tobytes() == scalars_many[name].tobytes()
    assert scalars_one["loss"][-5:].mean() < scalars_one["loss"][:5].mean() / 3


def test_the_loop_returns_a_new_scalar_of_a_step(train):
    class WithNorm(TrainStep):
        def compute_gradients(self, images, labels):
            gradients, scalars = super().compute_gradients(images, labels)
            return gradients, scalars | {"gradient_norm": tf.linalg.global_norm(gradients)}

    scalars, _ = run_loops(make_step(WithNorm), train, [3])
    assert scalars["gradient_norm"].shape == (3,)
    assert (scalars["gradient_norm"] > 0).all()


def test_the_loop_stops_after_the_first_loss_that_is_not_finite(train):
    class Broken(TrainStep):
        def compute_loss(self, images, labels):
            loss, logits = super().compute_loss(images, labels)
            return tf.where(self.optimizer.iterations.value == 5, np.nan, loss), logits

    step = make_step(Broken)
    scalars, _ = run_loops(step, train, [20])
    assert np.isfinite(scalars["loss"]).tolist() == [True] * 5 + [False]
    assert int(step.optimizer.iterations) == 6


def replace_by_a_setting():
    class Replacing(TrainStep):
        view = Setting(3, "A setting.")


def replace_by_an_attribute():
    class Replacing(TrainStep):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._averaging = 0.9

    make_step(Replacing)


@pytest.mark.parametrize(("replace", "name"), [(replace_by_a_setting, "view"), (replace_by_an_attribute, "_averaging")])
def test_a_subclass_that_replaces_an_attribute_of_the_base_is_refused(replace, name):
    with pytest.raises(Error, match=rf"^Replacing\.{name} replaces an attribute that TrainStep needs: .*\.$"):
        replace()


def test_random_seeds_depend_on_seed_step_and_purpose():
    def draw(seed=0, iterations=0, purpose="mixup"):
        step = make_step(seed=seed)
        step.iterations.assign(iterations)
        return tuple(step.random_seed(purpose).numpy())

    draws = [draw(), draw(seed=1), draw(iterations=1), draw(purpose="augment")]
    assert len(set(draws)) == 4
    assert draw() == draws[0]


def test_dropout_and_batch_norm_train_and_evaluate_in_their_own_modes(train):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    parts = [keras.Input([28, 28, 1]), layers.Flatten(), layers.BatchNormalization(), layers.Dropout(0.5)]
    step = TrainStep(keras.Sequential([*parts, layers.Dense(10)]), keras.optimizers.Adam())
    moving = step.model.layers[1].moving_mean.numpy().copy()
    run_loops(step, train, [2])
    assert not np.array_equal(step.model.layers[1].moving_mean.numpy(), moving)
    image = scale_images(train.images[:1])
    assert np.array_equal(step.eval_model(image, training=False), step.eval_model(image, training=False))
