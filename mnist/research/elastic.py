"""Elastic distortions: bends each image by a smooth random field, on top of `augment`.

Simard et al., "Best Practices for Convolutional Neural Networks" (ICDAR 2003), section 2. As in the paper, a Gaussian
of 4 pixels smooths a field of random values. They lie on a grid of 10 by 10, because such a Gaussian blurs a finer
grid anyway. The factor of 34 in the paper moves a pixel by a standard deviation of 1.4 pixels. One interpolation
applies the affine map and the field.

    python -m mnist.research.elastic --displacement=1 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.37 ± 0.03 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.data import SIDE
from mnist.research.augment import Augment
from mnist.settings import Setting

import numpy as np
import tensorflow as tf

_GRID = 10  # random values along each side of the image


class Elastic(Augment):
    """A step that draws one field of displacements for each image, a function of `(seed, step)`."""

    displacement = Setting(1.0, "Standard deviation of the shift of a pixel, in pixels. 0: none.", low=0.0)
    smoothness = Setting(4.0, "Standard deviation of the Gaussian that smooths the shifts, in pixels.", low=3.0)

    def resample(self, images, maps):
        if not self.displacement:
            return super().resample(images, maps)
        field = self.draw_field(tf.shape(images)[0])
        y, x = tf.meshgrid(tf.range(SIDE, dtype=tf.float32), tf.range(SIDE, dtype=tf.float32), indexing="ij")
        a, b, c, d, e, f = tf.unstack(maps[:, :, tf.newaxis, tf.newaxis], axis=1)
        return bilinear(images, a * x + b * y + c + field[:, 0], d * x + e * y + f + field[:, 1])

    def draw_field(self, size):
        """Draws shifts along x and y, in pixels. Returns: float32 `[size, 2, 28, 28]`."""
        noise = tf.random.stateless_normal([size, 2, _GRID, _GRID], self.random_seed("elastic"))
        smooth = tf.constant(smoothing(self.smoothness))  # [28, 10]
        return self.displacement * tf.matmul(smooth, tf.matmul(noise, smooth, transpose_b=True))


def smoothing(sigma):
    """Returns a matrix, float32 `[28, 10]`, that smooths independent values over `sigma` pixels with variance 1."""
    distances = np.arange(SIDE)[:, None] - np.linspace(-1.0, SIDE, _GRID)
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    return np.float32(weights / np.linalg.norm(weights, axis=1, keepdims=True))


def bilinear(images, x, y):
    """Interpolates images between pixels, black beyond the edges.

    Args:
      images: float32 `[B, 28, 28, 1]`.
      x, y: columns and rows, float32 `[B, 28, 28]`.

    Returns: float32 `[B, 28, 28, 1]`.
    """
    width = SIDE + 3  # with a black margin of one pixel before and two behind
    padded = tf.reshape(tf.pad(images[..., 0], [[0, 0], [1, 2], [1, 2]]), [-1])
    # Stacks the four pixels around a place, so that one gather reads them.
    corners = tf.stack([tf.roll(padded, -shift, 0) for shift in (0, 1, width, width + 1)], axis=1)
    x, y = (tf.clip_by_value(place + 1, 0.0, SIDE + 1.0) for place in (x, y))
    left, top = tf.floor(x), tf.floor(y)
    firsts = tf.range(tf.shape(images)[0])[:, tf.newaxis, tf.newaxis] * (width * width)
    found = tf.gather(corners, firsts + tf.cast(top, tf.int32) * width + tf.cast(left, tf.int32))  # [B, 28, 28, 4]
    a, b, c, d = tf.unstack(found, axis=-1)
    above, below = a + (x - left) * (b - a), c + (x - left) * (d - c)
    return (above + (y - top) * (below - above))[..., tf.newaxis]


if __name__ == "__main__":
    train.launch(Elastic)
