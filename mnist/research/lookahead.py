"""Lookahead: slow weights follow the fast ones every few steps, and the fast ones restart from there.

Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (arXiv:1907.08610, algorithm 1). As in the paper the
slow weights are evaluated. The optimizer keeps its moments.

    python -m mnist.research.lookahead --sync_period=5 --slow_step=0.5 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.15 ± 0.03 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.model import copy_model
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class Lookahead(TrainStep):
    """A step with `slow`, a copy of the model that moves part of the way to it every `sync_period` steps."""

    sync_period = Setting(5, "Steps of the fast weights for each step of the slow weights.", low=1)
    slow_step = Setting(
        0.5, "Part of the way that the slow weights move. 1: all, as in plain training.", low=0.01, high=1.0
    )

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.slow = copy_model(model)

    def __call__(self, *batch):
        scalars = super().__call__(*batch)
        # Counts updates, not batches, because an update may accumulate several. Between two nothing moves.
        updates = getattr(self.optimizer, "inner_optimizer", self.optimizer).iterations
        due = tf.equal(updates % self.sync_period, 0) | (self.slow_step == 1)
        trained = {id(v) for v in self.model.trainable_variables}
        for slow, fast in zip(self.slow.variables, self.model.variables, strict=True):
            value = fast.value.read_value()
            if id(fast) in trained:
                moved = slow + self.slow_step * (value - slow) if self.slow_step < 1 else value
                slow.assign(tf.where(due, moved, slow))
                fast.assign(tf.where(due, moved, value))
            else:
                slow.assign(value)  # copies statistics and generators, which no gradient changes
        return scalars

    @property
    def eval_model(self):
        return self.slow


if __name__ == "__main__":
    train.launch(Lookahead)
