"""Flips single bits in one of two computations of a step, and counts how many --verify_every finds. Prints its cost.

    python scripts/proofs/flip_bits.py --data_dir=MNIST

Each flip is one random bit of a random gradient, slot or weight. The cost compares the training time of runs with and
without --verify_every=50, in turn.
"""

import functools
import tempfile

from mnist import checkpoint, data
from mnist.cli import run as run_command
from mnist.distributed import Cluster
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.settings import Setting, local_path
from mnist.step import Recomputation, StepFailed, TrainStep, compile_step

import keras
import numpy as np
import tensorflow as tf


class Proof:
    flips = Setting(1000, "Bits to flip.", low=1)
    slices = Setting(1, "Slices of a batch.", low=1)
    seed = Setting(0, "Seed of the places of the bits.", low=0)
    rounds = Setting(7, "Pairs of runs that the cost is measured with. 0: none.", low=0)
    steps = Setting(1000, "Steps of each of these runs.", low=50)
    dataset = Setting("auto", "Data set.", kind=data.NAMES)
    data_dir = Setting(None, "Folder of the data.", kind=local_path)


class Flipping(TrainStep):
    """A step that flips the bit `bit` of gradient element `place`, counted through all gradients. -1: none."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.place = tf.Variable(-1, trainable=False, dtype=tf.int32)
        self.bit = tf.Variable(0, trainable=False, dtype=tf.int32)

    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        flipped, first = [], 0
        for gradient in gradients:
            places = tf.range(first, first + tf.size(gradient))
            masks = tf.where(places == self.place, tf.bitwise.left_shift(1, self.bit), 0)
            bits = tf.bitcast(gradient, tf.int32) ^ tf.reshape(masks, gradient.shape)
            flipped.append(tf.bitcast(bits, tf.float32))
            first += tf.size(gradient)
        return flipped, scalars


def flip_element(variable, place, bit):
    """Flips a bit of element `place` of a float32 or integer variable."""
    array = variable.numpy()
    array = np.ascontiguousarray(array).reshape(-1).copy()
    array.view(f"u{array.itemsize}")[place] ^= np.array(1 << bit, f"u{array.itemsize}")
    variable.assign(array.reshape(variable.shape))


def make_step(cls, **settings):
    keras.utils.set_random_seed(0)
    return cls(CNN(), keras.optimizers.Adam(1e-3), seed=0, **settings)


class FlippedOnce:
    """A function that takes a step each time it is called, and flips a random bit the first or the second time."""

    def __init__(self, rng, step, take_step, targets):
        self._step, self._take_step, self._calls, self.wrong = step, take_step, 0, rng.integers(2)
        self._target = targets[rng.integers(len(targets))] if rng.random() < 0.5 else None
        elements = [self._target] if self._target is not None else step.trained_variables()
        self._place = rng.integers(sum(int(tf.size(v)) for v in elements))
        self._bit = rng.integers(32 if self._target is None else 8 * self._target.dtype.size)

    def __call__(self):
        flips = self._calls == self.wrong
        self._calls += 1
        if flips and self._target is None:
            self._step.place.assign(self._place)
            self._step.bit.assign(self._bit)
        result = self._take_step()
        self._step.place.assign(-1)
        self._step.bit.assign(0)
        if flips and self._target is not None:
            flip_element(self._target, self._place, self._bit)
        return result


def count_found(options, dataset):
    """Flips bits, and returns how many of them were found, with a right judgement of which computation was right."""
    rng, found = np.random.default_rng(options.seed), 0
    step = make_step(Flipping, slices=options.slices)
    train_step, variables = compile_step(step), checkpoint.variables_of(step)
    recomputation = Recomputation(step, variables, 1, Cluster())
    targets = [v.value for v in [*step.model.variables, *step.optimizer.variables]]
    for number in range(1, options.flips + 1):
        chosen = rng.integers(0, len(dataset.train.labels), 64)
        take_step = functools.partial(train_step, *[tf.constant(array[chosen]) for array in dataset.train])
        flipped = FlippedOnce(rng, step, take_step, targets)
        before = [variable.read_value() for variable in variables.values()]
        try:
            recomputation.take(number, flipped)
        except StepFailed as error:
            found += f"agrees with {('the second', 'the first')[flipped.wrong]}" in str(error)
        for variable, value in zip(variables.values(), before, strict=True):
            variable.assign(value)
        take_step()  # goes on with sound weights
    return found


def measure_cost(options, dataset):
    """Returns the training times with --verify_every=50 over those without, `[rounds]`."""
    ratios = []
    for number in range(options.rounds):
        seconds = {}
        for every in (0, 50) if number % 2 else (50, 0):
            with tempfile.TemporaryDirectory() as folder:
                plan = {"max_steps": options.steps, "epochs": 1000, "verify_every": every}
                results = train_and_evaluate(make_step(TrainStep), dataset, folder, **plan)
            seconds[every] = results["train_seconds"]
        ratios.append(seconds[50] / seconds[0])
    return ratios


def main(options):
    dataset = data.load(options.dataset, options.data_dir)
    found = count_found(options, dataset)
    print(f"found and judged {found} of {options.flips} flipped bits, --slices={options.slices}")
    if ratios := sorted(measure_cost(options, dataset)):
        middle = np.median(ratios)
        print(f"time with --verify_every=50: {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)")
    return int(found != options.flips)


if __name__ == "__main__":
    run_command(main, Proof)
