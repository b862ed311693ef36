"""Averaged weights: an exponential moving average is evaluated and exported, training itself is as ever.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); the decay
warms up much as that of `tf.train.ExponentialMovingAverage` does, n / (n + 10) after n steps.

    python -m mnist.research.ema --decay=0.998 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.25 ± 0.07 %.
The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class EMA(TrainStep):
    """Keeps `average`, a copy of the model whose variables follow the model's."""

    decay = Setting(0.998, "Weight of the past in the average; 0 averages nothing.", low=0.0, below=1.0)

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.average = type(model).from_config(model.get_config())
        self.average.set_weights(model.get_weights())

    def apply_gradients(self, gradients):
        super().apply_gradients(gradients)
        step = tf.cast(self.optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self.decay, step / (step + 10))  # early on the initial weights count for little
        for average, variable in zip(self.average.variables, self.model.variables, strict=True):
            if average.dtype == "float32":
                average.assign(decay * average.value + (1 - decay) * variable.value)
            else:  # the state of a random generator
                average.assign(variable.value)

    @property
    def eval_model(self):
        return self.average


if __name__ == "__main__":
    train.launch(EMA)
