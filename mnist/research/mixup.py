"""Mixup: blends each image with another one of the batch, and their labels, too.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412). As in the authors' code, a batch has one
share. The partner is the batch in reverse, which is as random as the order.

    python -m mnist.research.mixup --alpha=0.2 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.04 ± 0.06 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class Mixup(TrainStep):
    """A step on a batch that is blended with its reverse."""

    alpha = Setting(0.2, "Parameter of the distribution of the share, Beta(alpha, alpha). 0: none.", low=0.0)

    def draw_share(self):
        """Draws the share of a batch in its blend. Returns: a float32 scalar from 0.5 to 1."""
        if not self.alpha:  # the limit of Beta(alpha, alpha), which has no density
            return 1.0
        gammas = tf.random.stateless_gamma([2], self.random_seed("mixup"), self.alpha)
        share = tf.math.divide_no_nan(gammas[0], tf.reduce_sum(gammas))
        return tf.maximum(share, 1 - share)

    def prepare_batch(self, *batch):
        images, labels, *more = super().prepare_batch(*batch)
        share = self.draw_share()
        return *(share * x + (1 - share) * x[::-1] for x in (images, labels)), *more


if __name__ == "__main__":
    train.launch(Mixup)
