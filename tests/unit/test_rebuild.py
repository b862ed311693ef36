"""A model that another command rebuilds, or that is copied, has the outputs of the run's model, or is refused."""

import functools
import math
import sys

from mnist import Error, finished
from mnist.loop import train_and_evaluate
from mnist.metrics import compute_metrics
from mnist.model import make_predict_logits
from mnist.research.ema import EMA
from mnist.research.wide import WideCNN
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from conftest import make_linear

layers = keras.layers


def tanh(x):
    return keras.ops.tanh(x)


class Plainest(keras.Model):
    """A model without arguments and without get_config()."""

    def __init__(self):
        super().__init__()
        self.flatten, self.logits, self.power = layers.Flatten(), layers.Dense(10), 1.0
        self(keras.Input([28, 28, 1]))

    def call(self, images):
        return self.logits(self.flatten(images) ** self.power)


class Scaled(layers.Layer):
    """A layer whose get_config() lacks a value."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        return x * self.scale

    def get_config(self):
        return super().get_config()


def make_other_scaled():
    class Scaled(layers.Layer):
        def call(self, x):
            return -x

    return Scaled()


def changed():
    model = Plainest()
    model.power = 0.2
    return model


def sequential(*inner):
    return lambda: make_linear(*(make() for make in inner))


WRONG = {
    "an attribute": changed,
    "a value": sequential(lambda: Scaled(3.0)),
    "two classes of one name": sequential(Scaled, make_other_scaled),
}
RIGHT = {
    "plainest": Plainest,
    "function": sequential(lambda: layers.Dense(8, activation=tanh)),
    "layer": sequential(Scaled),
    "wide": functools.partial(WideCNN, width=2),
}


def train(digits, workdir, model, cls=TrainStep, optimizer=keras.optimizers.SGD, max_steps=3, **options):
    keras.utils.set_random_seed(0)
    step = cls(model(), optimizer(0.01))
    return train_and_evaluate(step, digits, str(workdir), max_steps=max_steps, **options)


@pytest.mark.parametrize("name", WRONG)
def test_a_model_with_a_wrong_get_config_trains_but_is_not_evaluated_or_averaged(name, digits, tmp_path, capsys):
    train(digits, tmp_path, WRONG[name])
    printed = capsys.readouterr().out
    assert "cannot be rebuilt" in printed
    assert "cannot evaluate or export it" in printed
    with pytest.raises(Error, match=r"cannot be rebuilt: .+"):
        finished.load(str(tmp_path))
    averaging = [{"cls": EMA}, {"optimizer": lambda rate: keras.optimizers.SGD(rate, use_ema=True)}]
    for number, options in enumerate(averaging):
        with pytest.raises(Error, match=r"cannot be copied, as averaging needs it: .+") as caught:
            train(digits, tmp_path / str(number), WRONG[name], **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RIGHT)
def test_a_rebuilt_model_has_the_same_test_loss(name, digits, tmp_path, capsys):
    results = train(digits, tmp_path, RIGHT[name])
    assert "cannot be rebuilt" not in capsys.readouterr().out
    model = finished.load(str(tmp_path)).model
    metrics = compute_metrics(make_predict_logits(model)(digits.test.images).numpy(), digits.test.labels)
    assert metrics["loss"] == results["test_loss"]
    assert train(digits, tmp_path / "ema", RIGHT[name], EMA)["steps"] == 3


def test_a_model_whose_code_changed_after_the_run_is_refused(digits, tmp_path, monkeypatch):
    train(digits, tmp_path, Plainest)
    monkeypatch.setattr(Plainest, "call", lambda self, images: 2.0 * self.logits(self.flatten(images)))
    with pytest.raises(Error, match="code that has changed, makes a model with other answers"):
        finished.load(str(tmp_path))


def test_a_class_of_the_running_script_is_found(digits, tmp_path, monkeypatch):
    class Mine(Plainest):
        pass

    Mine.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    results = train(digits, tmp_path, Mine)
    assert finished.load(str(tmp_path)).history[-1]["validation_loss"] == results["validation_loss"]


class Counts(layers.Layer):
    """A layer whose output depends on the number of its calls, in evaluations too."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * (1.0 + 0.1 * self.calls)


def test_evaluations_do_not_change_the_state_of_a_layer(digits, tmp_path):
    model = sequential(Counts)

    class Measures(TrainStep):
        def extra_metrics(self, images, labels, logits):
            return {"mean": float(np.mean(self.model(images[:5] / 255.0, training=False)))}

    straight = train(digits, tmp_path / "straight", model, max_steps=9)
    train(digits, tmp_path / "stopped", model, Measures, max_steps=4, checkpoint_every=2, eval_batch_size=50)
    resumed = train(digits, tmp_path / "stopped", model, Measures, max_steps=9, eval_batch_size=100)
    assert resumed["test_loss"] == straight["test_loss"]
    assert math.isfinite(resumed["test_loss"])
