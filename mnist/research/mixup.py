"""Mixup: each image is blended with another of the batch, and so are their labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412). As in the authors' code one
share is drawn for a batch; the partner is the batch in reverse, which is as random as the order is.

    python -m mnist.research.mixup --alpha=0.2 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.04 ± 0.06 %.
The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.step import TrainStep

import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_float(
    "alpha", 0.2, "Parameter of the Beta(alpha, alpha) that shares are drawn from; 0: none.", lower_bound=0.0
)


class Mixup(TrainStep):
    """Blends a batch with itself reversed.

    Args:
      alpha: parameter of the Beta distribution of the shares, at least 0; 0 blends nothing.
    """

    def __init__(self, model, optimizer, *, alpha=0.2, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}, expected >= 0")
        # Beta(0, 0) is all or nothing; as a distribution to draw from it needs a number above 0.
        self.draw_share = self._draw_beta if alpha else lambda: 1.0
        self.alpha = alpha

    def _draw_beta(self):
        gammas = tf.random.stateless_gamma([2], self.random_seed("mixup"), self.alpha)
        share = tf.math.divide_no_nan(gammas[0], tf.reduce_sum(gammas))
        return tf.maximum(share, 1 - share)

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        share = self.draw_share()
        return tuple(share * x + (1 - share) * x[::-1] for x in (images, labels))


if __name__ == "__main__":
    train.launch(lambda model, optimizer, **kwargs: Mixup(model, optimizer, alpha=FLAGS.alpha, **kwargs))
