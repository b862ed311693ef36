"""The content of a checkpoint, and which checkpoints a run keeps."""

from mnist import Error, checkpoint, data, finished
from mnist.loop import train_and_evaluate
from mnist.model import CNN, describe_model
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf


def save(folder, step):
    metadata = {"step": 1, "history": [], "dataset": "digits", "data_dir": None}
    checkpoint.save(
        str(folder),
        checkpoint.variables_of(step) | checkpoint.variables_of_eval_model(step),
        metadata | {"model": describe_model(step.eval_model)},
        keep=1,
    )


class Linear(keras.Model):
    """A model whose configuration forgets `units`."""

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.logits = keras.layers.Dense(units), keras.layers.Dense(10)

    def build(self, input_shape):
        self.hidden.build([None, 784])
        self.logits.build([None, self.hidden.units])

    def call(self, images, training=False):
        return self.logits(self.hidden(tf.reshape(images, [-1, 784])))

    def get_config(self):
        return {}


def make_dense(value):
    layer = keras.layers.Dense(2, use_bias=False)
    layer.build([None, 2])
    layer.set_weights([np.full([2, 2], value)])
    return layer


class Holder(TrainStep):
    """A step with state of every kind, nested in every way."""

    def __init__(self, model, optimizer, value, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.by_name = {"b": tf.Variable(value), "a": [tf.Variable(value), (keras.Variable(value),)]}
        self.metric = keras.metrics.Mean()
        self.metric.update_state(value)
        self.generator = tf.random.Generator.from_seed(int(value))
        self.seeds = keras.random.SeedGenerator(int(value))
        self.inner = [{"layer": make_dense(value)}, tf.Module()]
        self.inner[1].state = tf.Variable(value)
        self.inner[1].layer = make_dense(value)
        self.inner[1].generator = tf.random.Generator.from_seed(int(value))
        self.inner[1].back = self
        self.name_of_nothing = "no state"

    def values(self):
        inner, layer = self.inner[1], self.inner[0]["layer"]
        state = [*self.by_name["a"][:1], self.by_name["a"][1][0], self.by_name["b"], self.seeds.state]
        state += [*self.metric.variables, self.generator.state, inner.state, inner.generator.state]
        return [np.array(v) for v in [*state, *inner.layer.variables, *layer.variables]]


def test_state_in_dicts_metrics_and_generators_is_saved(tmp_path):
    old, new = (Holder(CNN(), keras.optimizers.Adam(), value) for value in (3.0, 4.0))
    different = [not np.array_equal(a, b) for a, b in zip(old.values(), new.values(), strict=True)]
    assert different.count(False) == 1  # the count of the metric
    save(tmp_path, old)
    checkpoint.assign(new, checkpoint.load_newest(str(tmp_path))[0])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(old.values(), new.values(), strict=True))


def test_a_damaged_checkpoint_does_not_count_among_the_kept(tmp_path):
    digits = data.load("digits")

    def train(max_steps, keep):
        keras.utils.set_random_seed(0)
        step = TrainStep(CNN(), keras.optimizers.Adam())
        options = {"checkpoint_every": 2, "keep_checkpoints": keep, "batch_size": 8, "epochs": 1}
        train_and_evaluate(step, digits, str(tmp_path), max_steps=max_steps, **options)

    train(6, keep=3)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "ckpt-6.data-00000-of-00001").write_bytes(b"damaged")
    train(5, keep=1)  # resumes from 4
    assert sorted(path.name for path in checkpoints.glob("*.index")) == ["ckpt-5.index", "damaged-ckpt-6.index"]
    assert tf.train.latest_checkpoint(str(checkpoints)) == str(checkpoints / "ckpt-5")
    assert checkpoint.load_newest(str(checkpoints))[1]["step"] == 5


def test_a_model_whose_configuration_is_wrong_is_refused(tmp_path):
    model = Linear(units=7)
    model.build(None)
    step = TrainStep(model, keras.optimizers.Adam())
    save(tmp_path / "checkpoints", step)
    with pytest.raises(Error, match=r"cannot be rebuilt: .* get_config\(\) has other variables"):
        finished.load(str(tmp_path))


def test_a_model_without_a_configuration_resumes_but_does_not_load(tmp_path):
    class Wrapped(Linear):
        get_config = keras.Model.get_config

        def __init__(self, inner):  # Keras cannot record an object by itself
            super().__init__()
            self.inner = inner

    steps = []
    for _ in range(2):
        model = Wrapped(object())
        model.build(None)
        steps.append(TrainStep(model, keras.optimizers.Adam()))
    save(tmp_path / "checkpoints", steps[0])
    checkpoint.assign(steps[1], checkpoint.load_newest(str(tmp_path / "checkpoints"))[0])
    assert all(np.array_equal(a, b) for a, b in zip(*(step.model.get_weights() for step in steps), strict=True))
    with pytest.raises(Error, match=r"its class has no get_config\(\)"):
        finished.load(str(tmp_path))
