"""Random erasing: replaces a rectangle of random size, shape and place by noise, in some images.

Zhong et al., "Random Erasing Data Augmentation" (arXiv:1708.04896, algorithm 1). Areas are 2 to 20 %, because 40 % as
in the paper hide a digit. The ratio of the sides is above one as often as below. A rectangle that crosses an edge is
cut, where the paper draws another one.

    python -m mnist.research.random_erasing --erase=0.25 --largest_area=0.2 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.18 ± 0.02 %. The plain step gives 99.26 ± 0.08 %.
"""

import math

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf

_SMALLEST_AREA, _LONGEST = 0.02, 1 / 0.3  # share of the image, and ratio of the sides (section 4.2 of the paper)


class RandomErasing(TrainStep):
    """A step that draws a rectangle for each image, a function of `(seed, step)`."""

    erase = Setting(0.25, "Share of the images with an erased rectangle. 0: none.", low=0.0, high=1.0)
    largest_area = Setting(0.2, "Largest area of a rectangle, as a share of the image.", low=_SMALLEST_AREA, high=1.0)

    def prepare_batch(self, *batch):
        images, labels, *more = super().prepare_batch(*batch)
        if not self.erase:
            return images, labels, *more
        shape = tf.shape(images)
        draws = tf.random.stateless_uniform([5, shape[0], 1], self.random_seed("erasing"))
        area = _SMALLEST_AREA + draws[0] * (self.largest_area - _SMALLEST_AREA)
        ratio = tf.exp((2 * draws[1] - 1) * math.log(_LONGEST))
        rows = _is_inside(shape[1], tf.sqrt(area * ratio), draws[2])
        columns = _is_inside(shape[2], tf.sqrt(area / ratio), draws[3])
        erased = rows[:, :, tf.newaxis] & columns[:, tf.newaxis] & (draws[4] < self.erase)[:, tf.newaxis]
        noise = tf.random.stateless_uniform(shape, self.random_seed("erased"))
        return tf.where(erased[..., tf.newaxis], noise, images), labels, *more


def _is_inside(size, part, place):
    """Finds the pixels within an interval along one side of the image.

    Args:
      size: pixels of the side, an int32 scalar.
      part: length of the interval as a share of the side, float32 `[B, 1]`.
      place: position in the rest of the side, float32 `[B, 1]` in [0, 1].

    Returns: bool `[B, size]`.
    """
    first = place * tf.maximum(1 - part, 0.0)
    middles = (tf.range(tf.cast(size, tf.float32)) + 0.5) / tf.cast(size, tf.float32)
    return (middles >= first) & (middles < first + part)


if __name__ == "__main__":
    train.launch(RandomErasing)
