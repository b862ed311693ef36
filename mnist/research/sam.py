"""Sharpness-aware minimisation: takes the gradient where the loss is highest within a small radius.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (arXiv:2010.01412, algorithm 1).
Both passes see the same batch in training mode. In a composition `Adversarial` goes before SAM, because behind it each
pass would attack other images. A step costs twice as much as a plain one.

    python -m mnist.research.sam --rho=0.05 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.27 ± 0.04 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.model import keep_state
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class SAM(TrainStep):
    """A step that moves by `rho` along the gradient, takes the gradient there, and moves back."""

    exact_gradients = False  # at the moved weights

    rho = Setting(0.05, "Radius of the perturbation, in the norm of all weights together. 0: none.", low=0.0)

    def compute_gradients(self, *batch):
        weights = self.trained_variables()
        before = [tf.identity(w) for w in weights]
        with keep_state(self.model):  # both passes start from the same state, and the second one updates it
            gradients, scalars = super().compute_gradients(*batch)
        own = self.own_variables()
        before += [tf.identity(v) for v in own]
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        scale = self.rho / (norm + 1e-12)
        for w, g in zip(weights, gradients, strict=True):
            if g is not None:
                w.assign_add(tf.cast(scale, w.dtype) * g)
        gradients, _ = super().compute_gradients(*batch)
        for variable, value in zip([*weights, *own], before, strict=True):
            variable.assign(value)  # a subtraction would change last bits
        return gradients, scalars


if __name__ == "__main__":
    train.launch(SAM)
