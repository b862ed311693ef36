"""A model that is made again, by another command or as a copy, answers as the run's does, or is refused."""

import math
import sys

from mnist import Error, finished
from mnist.loop import train_and_evaluate
from mnist.metrics import compute_metrics
from mnist.model import CNN, copy_model, make_predict_logits
from mnist.research.ema import EMA
from mnist.step import TrainStep

import keras
import numpy as np
import pytest

layers = keras.layers


def tanh(x):
    return keras.ops.tanh(x)


class Plainest(keras.Model):
    """As one writes it first: no argument, no get_config()."""

    def __init__(self):
        super().__init__()
        self.flatten, self.logits, self.power = layers.Flatten(), layers.Dense(10), 1.0
        self(keras.Input([28, 28, 1]))

    def call(self, images):
        return self.logits(self.flatten(images) ** self.power)


class Powered(Plainest):
    """Its argument has a default, which is all that Keras notes of it."""

    def __init__(self, power=1.0, **kwargs):
        super().__init__()
        self.power = power


class Scaled(layers.Layer):
    """A get_config() that forgets a value."""

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

    return Scaled


def changed():
    model = Plainest()
    model.power = 0.2
    return model


def sequential(*inner):
    return lambda: keras.Sequential(
        [keras.Input([28, 28, 1]), layers.Flatten(), *(make() for make in inner), layers.Dense(10)]
    )


LIES = {
    "a default": lambda: Powered(power=0.2),
    "an attribute": changed,
    "a value": sequential(lambda: Scaled(3.0)),
    "two classes of one name": sequential(Scaled, lambda: make_other_scaled()()),
}
TRUTHS = {
    "plainest": Plainest,
    "function": sequential(lambda: layers.Dense(8, activation=tanh)),
    "layer": sequential(Scaled),
    "cnn": CNN,
}


def train(digits, workdir, model, cls=TrainStep, optimizer=keras.optimizers.SGD, max_steps=3, **options):
    keras.utils.set_random_seed(0)
    step = cls(model(), optimizer(0.01))
    return train_and_evaluate(step, digits, str(workdir), max_steps=max_steps, **options)


@pytest.mark.parametrize("name", LIES)
def test_a_model_that_would_answer_otherwise_is_said_and_refused(name, digits, tmp_path, capsys):
    train(digits, tmp_path, LIES[name])
    said = capsys.readouterr().out
    assert "cannot be rebuilt" in said
    assert "It trains and resumes; other commands cannot evaluate or export it." in said
    with pytest.raises(Error, match=r"cannot be rebuilt: .+"):
        finished.load(str(tmp_path))
    averaging = [{"cls": EMA}, {"optimizer": lambda rate: keras.optimizers.SGD(rate, use_ema=True)}]
    for number, options in enumerate(averaging):
        with pytest.raises(Error, match=r"cannot be copied, as averaging needs it: .+") as caught:
            train(digits, tmp_path / str(number), LIES[name], **options)
        assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("name", TRUTHS)
def test_a_model_is_made_again_with_its_own_answers(name, digits, tmp_path, capsys):
    results = train(digits, tmp_path, TRUTHS[name])
    assert "cannot be rebuilt" not in capsys.readouterr().out
    model = finished.load(str(tmp_path)).model
    metrics = compute_metrics(make_predict_logits(model)(digits.test.images).numpy(), digits.test.labels)
    assert metrics["loss"] == results["test_loss"]
    assert train(digits, tmp_path / "ema", TRUTHS[name], EMA)["steps"] == 3


def test_code_that_has_changed_since_is_refused(digits, tmp_path, monkeypatch):
    train(digits, tmp_path, Plainest)
    monkeypatch.setattr(Plainest, "call", lambda self, images: 2.0 * self.logits(self.flatten(images)))
    with pytest.raises(Error, match="it answers otherwise"):
        finished.load(str(tmp_path))


def test_a_copy_that_is_thrown_away_moves_no_draws(digits):
    draws = []
    for copies in (0, 2):
        keras.utils.set_random_seed(0)
        model = CNN()
        for _ in range(copies):
            copy_model(model)
        draws.append(CNN().get_weights()[0])
    np.testing.assert_array_equal(*draws)


def test_a_class_of_the_running_script_is_found_there(digits, tmp_path, monkeypatch):
    class Mine(Plainest):
        pass

    Mine.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    results = train(digits, tmp_path, Mine)
    assert finished.load(str(tmp_path)).history[-1]["validation_loss"] == results["validation_loss"]


def recurrent():
    return keras.Sequential(
        [keras.Input([28, 28, 1]), layers.Reshape([28, 28]), layers.LSTM(4, dropout=0.2), layers.Dense(10)]
    )


class Counts(layers.Layer):
    """Counts its calls, those of evaluations too, and answers by them."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * (1.0 + 0.1 * self.calls)


@pytest.mark.parametrize("model", [recurrent, sequential(Counts)])
def test_evaluations_move_no_state_of_a_layer(model, digits, tmp_path):
    class Measures(TrainStep):
        def extra_metrics(self, images, labels, logits):
            return {"mean": float(np.mean(self.model(images[:5] / 255.0, training=False)))}

    straight = train(digits, tmp_path / "straight", model, max_steps=9)
    train(digits, tmp_path / "stopped", model, Measures, max_steps=4, checkpoint_every=2, eval_batch_size=50)
    resumed = train(digits, tmp_path / "stopped", model, Measures, max_steps=9, eval_batch_size=100)
    assert resumed["test_loss"] == straight["test_loss"]
    assert math.isfinite(resumed["test_loss"])
