"""Several runs in one process: none leaves its step behind, and none changes the bits of the next."""

import gc
import weakref

from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
from conftest import bits_of, make_linear
from tensorflow.python.framework.ops import gradient_registry


def test_a_run_leaves_nothing_to_the_next(tmp_path, digits):
    def train(name, seed=0, policy="float32", optimizer="Adam", slices=1, **options):
        keras.utils.set_random_seed(seed)
        model = make_linear(keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(4, dtype=policy))
        step = TrainStep(model, getattr(keras.optimizers, optimizer)(0.01), seed=seed, slices=slices)
        train_and_evaluate(step, digits, tmp_path / name, max_steps=3, norms_every=2, **options)
        return bits_of(step), weakref.ref(step), len(gradient_registry.list())

    settings = [("first",), ("other", 1, "mixed_bfloat16", "SGD", 2), ("again",)]
    bits, steps, gradients = zip(*(train(*row, jit_compile=row[0] == "other") for row in settings), strict=True)
    gc.collect()
    assert bits[2] == bits[0]
    assert [step() for step in steps] == [None] * 3
    assert len({*gradients}) == 1  # each gradient that is left holds the graph of a step
