"""The step and the loop over it: exact values, exact replays, no retracing."""

from mnist import data
from mnist.data import train_batches
from mnist.model import CNN, scale_images
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


def test_scaling_in_a_graph_gives_numpys_values_for_all_grey_levels():
    levels = np.arange(256, dtype=np.uint8)
    expected = (levels / 255.0).astype(np.float32)
    assert tf.function(scale_images)(levels).numpy().tobytes() == expected.tobytes()


def test_prepared_labels_are_one_hot():
    images, labels = make_step().prepare_batch(np.zeros([3, 28, 28, 1], np.uint8), np.array([0, 9, 4], np.uint8))
    assert images.dtype == tf.float32
    np.testing.assert_array_equal(labels, np.eye(10, dtype=np.float32)[[0, 9, 4]])


def test_steps_per_loop_changes_no_bit(train):
    one, many = make_step(), make_step()
    scalars_one, _ = run_loops(one, train, [1] * 26)
    scalars_many, _ = run_loops(many, train, [20, 6])
    assert weights_of(one) == weights_of(many)
    for name in ("loss", "accuracy"):
        assert scalars_one[name].tobytes() == scalars_many[name].tobytes()


def test_short_batches_and_other_loop_lengths_do_not_retrace(train):
    _, loop = run_loops(make_step(), train, [20, 4, 24, 1])  # 1,500 images: step 24 has 28 of them
    assert loop.experimental_get_tracing_count() == 1


def test_the_loss_falls(train):
    scalars, _ = run_loops(make_step(), train, [48])
    assert scalars["loss"][-5:].mean() < scalars["loss"][:5].mean() / 3


def test_a_new_scalar_of_a_step_comes_out_of_the_loop(train):
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


def test_random_seeds_depend_on_seed_step_and_purpose():
    def draw(seed=0, iterations=0, purpose="mixup"):
        step = make_step(seed=seed)
        step.optimizer.iterations.assign(iterations)
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
