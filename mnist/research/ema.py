"""Averaged weights: evaluates and exports an exponential moving average. Training does not change.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992). After n steps the decay is at most
n / (n + 10), a warm-up similar to `tf.train.ExponentialMovingAverage`.

    python -m mnist.research.ema --decay=0.998 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.25 ± 0.07 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.model import copy_model
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class EMA(TrainStep):
    """A step with `average`, a copy of the model whose variables are averages over the steps."""

    decay = Setting(0.998, "Weight of the past in the average. 0 averages nothing.", low=0.0, below=1.0)

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.average = copy_model(model)
        # Sums 16-bit variables in float32, because 16 bits round away a small share of a new value.
        short = [(i, v) for i, v in enumerate(self.average.variables) if v.dtype in ("bfloat16", "float16")]
        self.sums = {i: tf.Variable(tf.cast(v.value, tf.float32)) for i, v in short}

    def __call__(self, *batch):  # not apply_gradients, because a composed class may change weights after it
        scalars = super().__call__(*batch)
        past = self.share_of_past()
        for i, (average, variable) in enumerate(zip(self.average.variables, self.model.variables, strict=True)):
            total, value = self.sums.get(i, average.value), variable.value
            if total.dtype.is_floating:  # skips the state of random generators
                share = tf.cast(past, total.dtype)
                value = share * total + (1 - share) * tf.cast(value, total.dtype)
            total.assign(value)
            if i in self.sums:
                average.assign(tf.cast(total, average.dtype))
        return scalars

    def share_of_past(self):
        """Returns the weight of the past in the average, a float32 scalar from 0 to 1."""
        step = tf.cast(self.iterations, tf.float32)
        return tf.minimum(self.decay, step / (step + 10))  # lets the average forget the initial weights soon

    @property
    def eval_model(self):
        return self.average


if __name__ == "__main__":
    train.launch(EMA)
