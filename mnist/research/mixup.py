"""Mixup: each image is blended with another of the batch, and so are their labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412). As in the authors' code one
share is drawn for a batch; the partner is the batch in reverse, which is as random as the order is.

    python -m mnist.research.mixup --alpha=0.2 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.04 ± 0.06 %.
The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class Mixup(TrainStep):
    """Blends a batch with itself reversed."""

    alpha = Setting(0.2, "Parameter of the Beta(alpha, alpha) that shares are drawn from; 0: none.", low=0.0)

    def draw_share(self):
        """The share of a batch in its blend: a scalar from 0.5 to 1."""
        if not self.alpha:  # Beta(0, 0) is all or nothing, and no distribution to draw from
            return 1.0
        gammas = tf.random.stateless_gamma([2], self.random_seed("mixup"), self.alpha)
        share = tf.math.divide_no_nan(gammas[0], tf.reduce_sum(gammas))
        return tf.maximum(share, 1 - share)

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        share = self.draw_share()
        return tuple(share * x + (1 - share) * x[::-1] for x in (images, labels))


if __name__ == "__main__":
    train.launch(Mixup)
