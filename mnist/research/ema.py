"""Averaged weights: an exponential moving average is evaluated and exported, training goes on as it is.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); the decay
warms up much as that of `tf.train.ExponentialMovingAverage` does, n / (n + 10) after n steps.

    python -m mnist.research.ema --decay=0.998 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.25 ± 0.07 %.
The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.step import TrainStep

import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_float("decay", 0.998, "Weight of the past; 0 averages nothing.", lower_bound=0.0, upper_bound=0.999999)


class EMA(TrainStep):
    """Keeps `average`, a copy of the model whose variables follow the model's.

    Args:
      decay: weight of the past in the average, 0 (no averaging) to below 1.
    """

    def __init__(self, model, optimizer, *, decay=0.998, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 <= decay < 1")
        self.decay = decay
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
    train.launch(lambda model, optimizer, **kwargs: EMA(model, optimizer, decay=FLAGS.decay, **kwargs))
