"""R-Drop: makes two passes with different dropped units agree.

Liang et al., "R-Drop: Regularized Dropout for Neural Networks" (arXiv:2106.14448, equation 4), halved. The loss is the
mean of both cross-entropies plus `consistency` times half the mean of both Kullback-Leibler divergences. The model has
dropout before its last layer.

    python -m mnist.research.rdrop --consistency=1 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.21 ± 0.05 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.model import CNN
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="mnist")
class DropoutCNN(CNN):
    """The CNN with dropout of 0.2 before its last layer."""

    def __init__(self, **kwargs):
        self.dropout = keras.layers.Dropout(0.2, name="dropout")
        super().__init__(**kwargs)

    def call(self, images, training=False):
        return self.logits(self.dropout(self.features(images), training=training))


class RDrop(TrainStep):
    """A step that runs a batch twice in training mode."""

    consistency = Setting(1.0, "Weight of the divergence between two passes. 0: none.", low=0.0)

    def compute_loss(self, *batch):
        loss, logits = super().compute_loss(*batch)
        if not self.consistency:
            return loss, logits
        kept = [v.value for v in self.model.non_trainable_variables if v.value.dtype.is_floating]  # without seeds
        kept += self.own_variables()
        statistics = [v.read_value() for v in kept]
        other_loss, other_logits = super().compute_loss(*batch)
        for variable, value in zip(kept, statistics, strict=True):
            variable.assign(value)  # so that moving means count a batch once
        first, second = tf.nn.log_softmax(logits), tf.nn.log_softmax(other_logits)
        # The sum of both divergences is the sum of (p - q)(log p - log q).
        apart = tf.reduce_sum((tf.exp(first) - tf.exp(second)) * (first - second), axis=1)
        return (loss + other_loss) / 2 + self.consistency / 4 * tf.reduce_mean(apart), logits


if __name__ == "__main__":
    train.launch(RDrop, model=DropoutCNN)
