"""Trains steps in slices, shared with the other processes of TF_CONFIG and alone: python tests/process/layouts.py OUT

Writes a digest of every variable and scalar, by step and layout, to OUT/<worker>.json. Each process has a part of the
trainings that are not shared. Processes of one device share two slices, and alone two devices have them. Processes of
two devices share more slices, and alone one device has them.
"""

import hashlib
import json
import os
import sys

from mnist import checkpoint, data
from mnist.data import as_tensors, epoch_batches
from mnist.distributed import Replicas, start
from mnist.model import CNN
from mnist.step import Context, TrainStep, make_train_loop

import keras
import numpy as np
import tensorflow as tf
from conftest import make_linear
from test_research import TRIOS, Stateful, variant

SIZES = (30, 30, 1)  # batches that four slices do not divide, and a batch with fewer images than slices


class Counting(TrainStep):
    """A step that writes variables of several types, draws in the loss, and has a generator."""

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.calls, self.mean = tf.Variable(0), tf.Variable(0.5)
        self.generator = tf.random.Generator.from_seed(3)

    def compute_loss(self, images, labels):
        noise = tf.random.stateless_normal(tf.shape(images), self.random_seed("noise"))
        images += 0.1 * noise + 0.1 * self.generator.normal(tf.shape(images))
        self.calls.assign_add(1)
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(images))
        return super().compute_loss(images, labels)


class Noisy(keras.layers.Layer):
    """A layer with a boolean state, and with a weight that it writes when it uses it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.odd = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x, training=False):
        if training:
            self.odd.assign(tf.logical_not(self.odd))
            self.scale.assign(0.99 * self.scale + 0.01 * tf.reduce_max(x))
        return x * self.scale


def recurrent():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input([28, 28, 1]), layers.Reshape([28, 28]), layers.GRU(8, dropout=0.2), layers.Dense(10)]
    )


def make_steps():
    """Returns a dict from names to pairs of a function that makes a step and its number of slices."""

    def make(cls, model=Stateful, optimizer=keras.optimizers.Adam, dtype="float32", slices=2):
        def make_step():
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy(dtype)
            return cls(model(), optimizer(), seed=0, slices=slices)

        return make_step, slices

    def clipped():
        return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1)

    def averaged():
        return keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)

    def compose(*names):
        return type("".join(names), tuple(variant(name) for name in names), {})

    steps = {names: make(compose(*names.split("+")), slices=4) for names in TRIOS}
    steps |= {"winograd": make(variant("winograd"), CNN), "record": make(variant("record"), CNN)}
    steps |= {"speedrun": make(variant("speedrun"), CNN, dtype="mixed_bfloat16")}
    steps |= {"plain": make(TrainStep, CNN, slices=4), "clipped": make(TrainStep, optimizer=clipped)}
    steps |= {"averaged": make(TrainStep, optimizer=averaged), "counting": make(Counting, slices=8)}
    steps |= {"noisy": make(TrainStep, lambda: make_linear(Noisy()), slices=4)}
    return steps | {dtype: make(TrainStep, recurrent, dtype=dtype) for dtype in ("mixed_float16", "float64")}


def digests(make_step, replicas, examples):
    """Trains a step, and returns a dict from the names of scalars and variables to digests."""
    step = make_step()
    _, train_loop = make_train_loop(step, Context(replicas))
    order = tf.range(len(examples.labels))
    batches = iter(epoch_batches(*as_tensors(examples), order, SIZES[0]))
    scalars, _ = train_loop(batches, tf.constant(len(SIZES)))
    found = {f"scalar {name}": value.numpy() for name, value in scalars.items()}
    found |= {name: variable.numpy() for name, variable in checkpoint.variables_of(step).items()}
    assert np.isfinite(found["scalar loss"]).all()
    assert len(found["scalar loss"]) == len(SIZES)
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in found.items()}


def main(out, *names):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    twice = start(devices=2, slices=4)
    cluster = twice.cluster
    once = Replicas(1, cluster)
    examples = data.Examples(*(part[: sum(SIZES)] for part in data.load("digits").train))
    found = {}
    steps = {name: step for name, step in make_steps().items() if name in names or not names}
    for name, (make_step, slices) in steps.items():
        found[name] = {f"process {cluster.worker}": digests(make_step, twice if slices > 2 else once, examples)}
    for name in [*steps][cluster.worker :: cluster.workers]:  # no process waits for another here
        make_step, slices = steps[name]
        found[name] |= {"alone": digests(make_step, Replicas(1 if slices > 2 else 2), examples)}
    with open(os.path.join(out, f"{cluster.worker}.json"), "w") as file:
        json.dump(found, file)
    cluster.exchange(b"", timeout=600)  # a process that leaves is lost to one that still computes


if __name__ == "__main__":
    main(*sys.argv[1:])
