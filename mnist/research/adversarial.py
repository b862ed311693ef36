"""Adversarial training: moves each pixel by at most epsilon, to raise the loss.

One attack step is FGSM (Goodfellow et al., arXiv:1412.6572). Several are PGD without the random start (Madry et al.,
arXiv:1706.06083). Each evaluation adds the accuracy under the same attack.

    python -m mnist.research.adversarial --epsilon=0.1 --attack_steps=1 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.19 ± 0.04 %. Under the attack it is 97.08 ± 0.19 % with 0.1 and
91.44 ± 0.72 % with 0.2. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import Error, train
from mnist.model import IMAGE_SHAPE, call_to_train, count_outputs, keep_state, scale_images
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


class Adversarial(TrainStep):
    """A step on attacked images. It also evaluates the accuracy under attacks of `robust_epsilons`."""

    exact_gradients = False  # the loss of the attacked images

    epsilon = Setting(0.1, "Largest change of a pixel in [0, 1] in training. 0: none.", low=0.0)
    attack_steps = Setting(1, "Steps of the attack. 1 is FGSM, more are PGD.", low=1)
    robust_epsilons = Setting((0.1, 0.2), "Largest changes of a pixel in evaluation.", low=0.0)

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.is_robust = tf.function(self._is_robust)
        with keep_state(model):  # raises now for a model without a gradient by the images
            self.attack(model, tf.zeros([1, *IMAGE_SHAPE]), tf.zeros([1, count_outputs(model)]), self.epsilon, True)

    def attack(self, model, images, labels, epsilon, training):
        """Moves images towards a higher loss.

        Args:
          model: a `keras.Model` from images to logits `[B, classes]`.
          images: float32 `[B, 28, 28, 1]` in [0, 1].
          labels: one-hot float32 `[B, classes]`.
          epsilon: largest change of a pixel.
          training: whether to call the model in training mode.

        Returns: float32 images `[B, 28, 28, 1]` in [0, 1]. Raises: `mnist.Error` if the model has no gradient.
        """
        lowest, highest = tf.maximum(images - epsilon, 0.0), tf.minimum(images + epsilon, 1.0)
        attacked = images
        for _ in range(self.attack_steps):
            with tf.GradientTape() as tape:
                tape.watch(attacked)
                logits = call_to_train(model, attacked) if training else model(attacked, training=False)
                loss = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
            gradient = tape.gradient(loss, attacked)
            if gradient is None:
                raise Error(f"the {type(model).__name__} cannot be attacked: it has no gradient by the images.")
            # The step size follows Madry et al., p. 13. The clip below cuts a single step to epsilon.
            moved = attacked + 2.5 * epsilon / self.attack_steps * tf.sign(gradient)
            attacked = tf.clip_by_value(moved, lowest, highest)
        return tf.stop_gradient(attacked)

    def compute_gradients(self, images, labels, *more):
        with keep_state(self.model):
            attacked = self.attack(self.model, images, labels, self.epsilon, True)
        return super().compute_gradients(attacked, labels, *more)

    def _is_robust(self, images, labels, epsilon):
        images = self.attack(
            self.eval_model, scale_images(images), tf.one_hot(labels, count_outputs(self.eval_model)), epsilon, False
        )
        return tf.argmax(self.eval_model(images, training=False), 1) == tf.cast(labels, tf.int64)

    def extra_metrics(self, images, labels, logits):
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(500)
        metrics = super().extra_metrics(images, labels, logits)
        for epsilon in self.robust_epsilons:
            correct = sum(int(self.is_robust(*batch, tf.constant(epsilon)).numpy().sum()) for batch in batches)
            metrics[f"robust_accuracy_{epsilon:g}"] = correct / len(labels)
        return metrics


if __name__ == "__main__":
    train.launch(Adversarial)
