"""Gradient surgery (PCGrad): trains two tasks, and removes the part of each gradient that opposes the other.

Yu et al., "Gradient Surgery for Multi-Task Learning" (arXiv:2001.06782, algorithm 1). The second task is whether the
class is odd. Its head reads the logits, so that any model has both losses after one forward pass. Where the scalar
`gradient_cosine` is below 0, the tasks are in conflict.

    python -m mnist.research.gradient_surgery --parity=1 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.21 ± 0.04 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.model import count_outputs
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import tensorflow as tf


class GradientSurgery(TrainStep):
    """A step with the losses `digit` and `parity`. Classes whose loss is one scalar stand behind it."""

    exact_gradients = False  # without the parts in conflict

    parity = Setting(1.0, "Weight of the second task, odd or even. 0: none.", low=0.0)

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.head = keras.layers.Dense(1, name="parity")
        self.head.build([None, count_outputs(model)])

    def trained_variables(self):
        return [*super().trained_variables(), *self.head.trainable_variables]

    def compute_loss(self, images, labels, *more):
        loss, logits = super().compute_loss(images, labels, *more)
        if not self.parity:
            return loss, logits
        odd = tf.reduce_sum(labels[:, 1::2], axis=1, keepdims=True)  # [B, 1]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(odd, self.head(logits))
        return {"digit": loss, "parity": self.parity * tf.reduce_mean(losses)}, logits

    def compute_gradients(self, *batch):
        gradients, scalars = super().compute_gradients(*batch)
        return gradients, scalars | ({"gradient_cosine": self.cosine} if self.parity else {})

    def combine_gradients(self, gradients):
        projected = dict(gradients)
        for one, other in [(one, other) for one in gradients for other in gradients if one != other]:
            pairs = [*zip(projected[one], gradients[other], strict=True)]  # None: the loss does not depend on it
            shared = [[tf.cast(g, tf.float32) for g in pair] for pair in pairs if None not in pair]
            dot = tf.add_n([tf.reduce_sum(x * y) for x, y in shared])
            norms = [tf.linalg.global_norm(part) for part in zip(*shared, strict=True)]
            self.cosine = tf.math.divide_no_nan(dot, norms[0] * norms[1])
            share = tf.math.divide_no_nan(tf.minimum(dot, 0.0), norms[1] ** 2)
            projected[one] = [x if None in (x, y) else x - tf.cast(share, x.dtype) * y for x, y in pairs]
        return super().combine_gradients(projected)


if __name__ == "__main__":
    train.launch(GradientSurgery)
