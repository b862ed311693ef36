"""The content of a checkpoint, and which checkpoints a run keeps."""

from mnist import checkpoint, data
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep

import keras
import numpy as np
import tensorflow as tf


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
    checkpoint.save(str(tmp_path), checkpoint.variables_of(old), {"step": 1}, keep=1)
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
