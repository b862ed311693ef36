"""Class weights: multiplies the cross-entropy of each image by the weight of its class.

King and Zeng, "Logistic Regression in Rare Events Data" (2001, section 4.2). The loss is the mean over images, as with
`class_weight` of `fit`. Balanced weights are N / (classes * count), as in scikit-learn. A mix of labels has the mix.

    python -m mnist.research.class_weights --class_weights=balanced --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.25 ± 0.02 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import Error, train
from mnist.model import count_outputs
from mnist.research.winograd import check_plain_loss
from mnist.settings import Setting
from mnist.step import TrainStep

import numpy as np
import tensorflow as tf


class ClassWeights(TrainStep):
    """A step with `weights`, float32 `[classes]`, in a checkpoint."""

    class_weights = Setting(["balanced"], "Weight of each class, or balanced. Empty: all are one.", kind=[str])

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.weights = tf.Variable(tf.ones([count_outputs(model)]), trainable=False)
        self.is_balanced = self.class_weights == ("balanced",)
        if self.class_weights:
            check_plain_loss(self, ClassWeights)
            self.weights.assign(_parse(self.class_weights, self.weights.shape))

    def training_set(self, images, labels):
        images, labels, *more = super().training_set(images, labels)
        if self.is_balanced:
            counts = np.bincount(labels, minlength=self.weights.shape[0])
            self.weights.assign(len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))
        return images, labels, *more

    def compute_loss(self, images, labels, *more):
        loss, logits = super().compute_loss(images, labels, *more)
        if not self.class_weights:
            return loss, logits
        losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)  # [B]
        return loss + tf.reduce_mean((tf.linalg.matvec(labels, self.weights) - 1) * losses), logits


def _parse(texts, shape):
    try:
        weights = np.ones(shape) if texts == ("balanced",) else np.array(texts, np.float32)
    except ValueError:
        weights = np.zeros([0])
    if weights.shape == shape and np.isfinite(weights).all() and weights.min() >= 0:
        return weights
    raise Error(f"--class_weights={','.join(texts)}: expected {shape[0]} numbers of at least 0, or balanced.")


if __name__ == "__main__":
    train.launch(ClassWeights)
