"""Mistakes in a step, a seed or a continued run that are easily made: right numbers, or one line that names them."""

import warnings

from mnist import Error, finished
from mnist.loop import train_and_evaluate
from mnist.model import CNN, count_on
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf


def small():
    inner = [keras.layers.Conv2D(2, 5, strides=5), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner])


def train(folder, digits, step, steps=2):
    return train_and_evaluate(step, digits, folder, max_steps=steps, epochs=1, batch_size=300, norms_every=0)


class Misspelt(TrainStep):
    knob = Setting(1.0, "A factor of the loss.")

    def compute_losses(self, images, labels):
        return self.knob * super().compute_loss(images, labels)[0]


class Late(TrainStep):
    def after_evaluations(self, entry):
        return True


class Helped(TrainStep):
    def compute_losses(self, images, labels):
        return super().compute_loss(images, labels)

    def compute_loss(self, images, labels):
        return self.compute_losses(images, labels)


@pytest.mark.parametrize(("cls", "meant"), [(Misspelt, "compute_loss"), (Late, "after_evaluation"), (Helped, None)])
def test_a_method_with_nearly_the_name_of_another_is_refused_unless_it_is_called(cls, meant, digits, tmp_path):
    step = cls(small(), keras.optimizers.SGD())
    if meant is None:
        assert train(tmp_path, digits, step)["steps"] == 2
        return
    with pytest.raises(Error, match=rf"nothing calls {cls.__name__}\.\w+: did you mean {meant}\?"):
        train(tmp_path, digits, step)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "a"])
def test_a_seed_out_of_range_is_refused_at_once(seed):
    with pytest.raises(ValueError, match="expected an integer from 0"):
        TrainStep(small(), keras.optimizers.SGD(), seed=seed)


class Head(TrainStep):
    """A step whose head has an optimizer of its own, and whose images have weights as NumPy makes them."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.head, self.other = keras.layers.Dense(10), keras.optimizers.SGD(0.5)
        self.head.build([None, 10])
        self.other.build(self.head.trainable_variables)

    def trained_variables(self):
        return [*super().trained_variables(), *self.head.trainable_variables]

    def training_set(self, images, labels):
        return images, labels, np.full(len(labels), 2.0)

    def prepare_batch(self, images, labels, weights):
        return *super().prepare_batch(images, labels), weights

    def compute_loss(self, images, labels, weights):
        loss, logits = super().compute_loss(images, labels)
        return loss + tf.reduce_mean(weights * tf.reduce_sum(self.head(tf.stop_gradient(logits)), axis=1)), logits

    def apply_gradients(self, gradients):
        own = self.head.trainable_variables
        super().apply_gradients([*gradients[: -len(own)], *[None] * len(own)])
        self.other.apply_gradients(zip(gradients[-len(own) :], own, strict=True))


def test_a_head_of_another_optimizer_gives_no_warning_and_takes_float64_weights(digits, tmp_path):
    step = Head(small(), keras.optimizers.Adam(), seed=np.int64(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert train(tmp_path, digits, step)["seed"] == 3
    np.testing.assert_allclose(step.head.bias, -2.0, rtol=1e-5)  # two steps of 0.5 times the weight 2


class Frozen(TrainStep):
    def trained_variables(self):
        return [variable for variable in super().trained_variables() if "dense" in variable.path]


def test_a_run_with_fewer_trained_variables_continues_their_slots(digits, tmp_path):
    first = TrainStep(small(), keras.optimizers.Adam())
    train(tmp_path, digits, first)
    optimizer = keras.optimizers.Adam()
    count_on(optimizer)
    step = Frozen(first.model, optimizer)
    finished.take_state(step, str(tmp_path))
    slots = {v.path.rpartition("/")[2]: v.numpy() for v in optimizer.variables if "momentum" in v.path}
    before = [v.numpy() for v in first.optimizer.variables if "momentum" in v.path and "dense" in v.path]
    assert len(slots) == len(before) == 2
    for ours, theirs in zip(slots.values(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Counting(TrainStep):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.counts = tf.Variable(tf.zeros([10]), trainable=False)

    def compute_loss(self, images, labels):
        self.count(tf.argmax(labels, 1))
        return super().compute_loss(images, labels)


def scatter(self, classes):
    self.counts.scatter_add(tf.IndexedSlices(tf.ones_like(classes, tf.float32), classes))


def add_n(self, classes):
    self.counts.assign(tf.add_n([self.counts, tf.reduce_sum(tf.one_hot(classes, 10), axis=0)]))


@pytest.mark.parametrize("count", [scatter, add_n])
def test_additions_of_any_kind_are_refused_with_slices(count, digits, tmp_path):
    step = type("Counting", (Counting,), {"count": count})(small(), keras.optimizers.SGD(), slices=2)
    with pytest.raises(Error, match="compute_loss adds to the variable"):
        train(tmp_path, digits, step)


class Early(TrainStep):
    knob = Setting(1.0, "A number.")

    def __init__(self, model, optimizer, **settings):
        self.twice = 2 * self.knob
        super().__init__(model, optimizer, **settings)


def test_a_setting_that_is_read_too_early_is_named():
    with pytest.raises(Error, match=r"Early reads 'knob' too early: call super\(\).__init__\(\) first"):
        Early(CNN(), keras.optimizers.SGD())
