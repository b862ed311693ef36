"""The check of a compiled step and its gradients before training: which faults it finds, and that it changes no bit."""

from mnist import Error
from mnist.loop import train_and_evaluate
from mnist.research.ema import EMA
from mnist.research.record import CentredCNN, Record
from mnist.research.sam import SAM
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import bits_of

L = keras.layers


@pytest.fixture(autouse=True)
def check_step(set_check_step):
    set_check_step(True)
    yield
    set_check_step(False)


def custom(gradient):
    """Returns an identity whose gradient is a function of the true one, `[B, ...]`."""

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), gradient

    return identity


class Wrapped(L.Layer):
    """A layer that applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def network(*middle, activation="tanh", **policy):
    """Returns a small smooth network with layers in its middle, after a feature map [B, 9, 9, 4]."""
    first = [L.Conv2D(4, 4, strides=3, activation=activation), *middle]
    return keras.Sequential([keras.Input([28, 28, 1]), *first, L.AveragePooling2D(3), L.Flatten(), L.Dense(10)])


def masked(place):
    def gradient(dy):
        mask = np.ones([9, 9, 4])
        mask[place] = 0
        return dy * tf.cast(mask, dy.dtype)

    return gradient


def float32_alone(dy):
    return tf.constant(1.1) * dy  # float64 cannot take it


FAULTS = {
    "sign": lambda dy: -dy,
    "factor": lambda dy: 1.1 * dy,
    "channel": masked((slice(None), slice(None), 2)),
    "position": masked((4, 3)),
    "border": masked((0, 0)),
    "axes": lambda dy: tf.transpose(dy, [0, 2, 1, 3]),
    "one_image": lambda dy: tf.concat([dy[:1] * 0, dy[1:]], 0),
    "float32": float32_alone,
}


class Changed(TrainStep):
    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        return [tf.clip_by_norm(g, 1e-3) for g in gradients], scalars


class Declared(Changed):
    exact_gradients = False


class Stopped(TrainStep):
    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return loss + tf.reduce_mean(tf.square(tf.stop_gradient(logits))), logits


class Forgotten(TrainStep):
    """A step whose second loss is not among the gradients."""

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return {"one": loss, "other": tf.reduce_mean(logits**2)}, logits

    def combine_gradients(self, gradients):
        return gradients["one"]


class Brighter(TrainStep):
    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        return brighten(images), labels


class Blurred(TrainStep):
    """A step that blurs the images, with an image in front."""

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        blurred = blur(images)[: tf.shape(images)[0]]
        return images + tf.reduce_mean(blurred, [1, 2], keepdims=True), labels


def brighten(x):
    return tf.maximum(x, 1.5 * x)


def blur(x):
    return tf.nn.conv2d(tf.pad(x, [[1, 0], [0, 0], [0, 0], [0, 0]]), tf.ones([3, 3, 1, 1]) / 9, 1, "VALID")


def run(digits, folder, cls=TrainStep, model=None, **options):
    keras.utils.set_random_seed(0)
    step = cls(model or network(), keras.optimizers.Adam(1e-3))
    train_and_evaluate(step, digits, folder, **{"max_steps": 2, "norms_every": 0} | options)
    return step


def refused(digits, folder, *args, **kwargs):
    with pytest.raises(Error) as error:
        run(digits, folder, *args, **kwargs)
    assert {path.name for path in folder.iterdir()} <= {".lock", ".owner"}
    text = str(error.value)
    assert "--check_step=false" in text
    assert text.count("\n") < 2
    return text


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_custom_gradient_is_refused_by_name(digits, tmp_path, fault):
    text = refused(digits, tmp_path / "run", model=network(Wrapped(custom(FAULTS[fault]))))
    assert "model/0" in text or "model/1" in text


@pytest.mark.parametrize("cls", [Changed, Stopped, Forgotten])
def test_gradients_of_another_loss_are_refused(digits, tmp_path, cls):
    assert "is not the derivative of the loss" in refused(digits, tmp_path / "run", cls)


@pytest.mark.parametrize(("cls", "function"), [(Brighter, brighten), (Blurred, blur)])
def test_step_that_the_graph_optimizer_changes_is_refused(digits, tmp_path, cls, function):
    images = tf.ones([2, 9, 9, 1])
    if np.array_equal(tf.function(function)(images), function(images)):
        pytest.skip("this processor does not show it")
    text = refused(digits, tmp_path / "run", cls)
    assert text.startswith("prepare_batch of ")
    assert "eager" in text


def averaging(dtype):
    """Returns a network with bias gradients that bfloat16 cannot sum."""
    last = [L.Conv2D(8, 3, activation="relu", dtype=dtype), L.GlobalAveragePooling2D(), L.Dense(10, dtype="float32")]
    first = L.Conv2D(8, 3, activation="relu", dtype=dtype)
    return keras.Sequential([keras.Input([28, 28, 1]), first, *last])


def test_gradients_that_bfloat16_cannot_sum_are_refused(digits, tmp_path):
    bias = tf.Variable(tf.zeros([1], tf.bfloat16))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.nn.bias_add(tf.ones([8, 28, 28, 1], tf.bfloat16), bias))
    if tape.gradient(total, bias)[0] > 6000:
        pytest.skip("this processor sums in float32")
    text = refused(digits, tmp_path / "run", model=averaging("mixed_bfloat16"))
    assert "wrong in bfloat16" in text
    assert 'dtype="float32"' in text
    run(digits, tmp_path / "other", model=averaging("float32"))


def noisy():
    return network(L.BatchNormalization(), L.Dropout(0.3), L.GaussianNoise(0.1), activation="relu")


BITS = [(TrainStep, noisy, 2), (EMA, noisy, 1), (SAM, noisy, 1)]
BITS += [pytest.param(Record, CentredCNN, 1, marks=pytest.mark.nightly)]


@pytest.mark.parametrize(("cls", "make", "slices"), BITS)
def test_the_bits_are_the_same_without_the_check(digits, tmp_path, cls, make, slices):
    steps = []
    for check_step in (True, False):
        keras.utils.set_random_seed(0)
        steps.append(cls(make(), keras.optimizers.Adam(1e-3), slices=slices))
        train_and_evaluate(
            steps[-1], digits, tmp_path / str(check_step), max_steps=2, norms_every=0, check_step=check_step
        )
    assert bits_of(steps[0]) == bits_of(steps[1])


class Counting(TrainStep):
    """A step that keeps things in Python while it runs."""

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.kept = {"logits": None, "all": [None]}

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        self.kept["logits"] = self.kept["all"][0] = logits
        return loss, logits


class GraphAlone(TrainStep):
    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return loss * tf.cast(logits.graph is not None, tf.float32), logits


def test_what_a_step_keeps_is_as_after_the_trace(digits, tmp_path):
    step = run(digits, tmp_path / "run", Counting)
    assert tf.is_symbolic_tensor(step.kept["logits"])
    assert tf.is_symbolic_tensor(step.kept["all"][0])


def test_step_for_a_graph_alone_trains_with_a_line(digits, tmp_path, capsys):
    run(digits, tmp_path / "run", GraphAlone)
    assert "is not checked before training: it does not run in eager mode" in capsys.readouterr().out


def test_declared_gradients_and_insisting_train(digits, tmp_path):
    run(digits, tmp_path / "one", Declared)
    run(digits, tmp_path / "other", Changed, check_step=False)
