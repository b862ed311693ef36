"""Winograd convolutions: the same gradients with fewer multiplications, except for round-off.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), section 4. Pointwise products
of a tile of inputs d and a filter g, in a transformed space, give a tile of outputs Y:

    Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A

- The first convolution has one channel. It is a matrix product, and its bias is the factor of an input of 1.
- The second one has 2x2 tiles of 5x5 outputs, with 196 products in place of 900.
- The third one has one tile of 3x3, with 25 products in place of 81.

    python -m mnist.research.winograd --slices=2 --flagfile=scripts/recipes/variants.flags

Evaluation runs the plain layers of the model. In bfloat16 the round-off is larger than in direct convolutions. In the
first step all biases are zero, so that ReLU gets 0 plus round-off where the input is black. The gradient of ReLU is
arbitrary there.

Two epochs, seeds 0 to 2, test accuracy: 99.26 ± 0.03 %. The plain step gives 99.26 ± 0.08 %.
"""

import typing

from mnist import Error, train
from mnist.model import CNN
from mnist.step import TrainStep

import numpy as np
import tensorflow as tf

# The method evaluates polynomials at the first `outputs + 1` of these points and at infinity. Small powers of two
# keep round-off low, and make Bᵀ and Aᵀ exact in bfloat16.
POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, -2.0)


class Transforms(typing.NamedTuple):
    """The matrices along height and width. In one dimension outputs @ (taps @ g * (inputs @ d)) convolves d with g."""

    inputs: tuple  # Bᵀ
    taps: tuple  # G
    outputs: tuple  # Aᵀ


def make_transforms(outputs, tiles):
    """Makes float32 `Transforms` for `tiles` neighbours with `outputs` outputs each, by the method of Toom and Cook."""
    points = np.array(POINTS[: outputs + 1])
    size = outputs + 2
    others = [np.delete(points, i) for i in range(len(points))]
    scales = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    polynomials = [[*np.poly(rest)[::-1], 0] for rest in others]  # zero at all points except one
    tile = np.array([*polynomials, np.poly(points)[::-1]], np.float32)
    taps = np.array([*(np.vander(points, 3, increasing=True) / np.array(scales)[:, None]), [0, 0, 1]], np.float32)
    results = np.array([*np.vander(points, outputs, increasing=True), np.eye(outputs)[-1]], np.float32).T
    inputs = np.zeros([tiles * size, tiles * outputs + 2], np.float32)
    for i in range(tiles):  # neighbours overlap by two inputs
        inputs[i * size : (i + 1) * size, i * outputs : i * outputs + size] = tile
    results = np.kron(np.eye(tiles, dtype=np.float32), results)
    # Along the width the points come first, so that one kernel takes all tiles of a row as a batch.
    order = np.arange(tiles * size).reshape(tiles, size).T.ravel()
    return Transforms((inputs, inputs[order]), (np.tile(taps, [tiles, 1]), taps), (results, results[:, order]))


CONV2 = make_transforms(outputs=5, tiles=2)
CONV3 = make_transforms(outputs=3, tiles=1)


def transform(matrices, x):
    """Multiplies `x [h, w, a, b]` by matrices `[m, h]`, `[n, w]` along its leading axes. Returns: `[m, n, a, b]`."""
    rows, columns = (tf.constant(matrix, x.dtype) for matrix in matrices)
    (m, h), (n, w) = rows.shape, columns.shape
    y = tf.matmul(rows, tf.reshape(x, [h, -1]))
    return tf.reshape(tf.matmul(columns, tf.reshape(y, [m, w, -1])), [m, n, -1, x.shape[-1]])


def transform_kernel(matrices, kernel):
    """Transforms a kernel `[3, 3, C, D]` in one product, because it is small and each slice repeats it."""
    (m, h), (n, w) = (matrix.shape for matrix in matrices)
    matrix = tf.constant(np.kron(*matrices), kernel.dtype)  # [m * n, h * w]
    return tf.reshape(tf.matmul(matrix, tf.reshape(kernel, [h * w, -1])), [m, n, *kernel.shape[2:]])


@tf.custom_gradient
def multiply(a, b):
    """Returns `tf.matmul(a, b)`, and computes the gradient of `b` first, so that other cores can go on with it."""

    def gradients(dy):
        db = tf.matmul(a, dy, transpose_a=True)
        with tf.control_dependencies([db]):
            return tf.matmul(dy, b, transpose_b=True), db

    return tf.matmul(a, b), gradients


def convolve(x, kernel, transforms):
    """Convolves `x [n, n, B, C]` with a transformed kernel `[h, w, C, D]`. Returns: `[n - 2, n - 2, B, D]`."""
    h, w, channels, _ = kernel.shape
    x = tf.reshape(transform(transforms.inputs, x), [h, w, -1, channels])  # [h, w, tiles of a row * B, C]
    return transform(transforms.outputs, multiply(x, kernel))


def max_pool(x):
    """Takes the largest of 2x2 along the leading axes of `[n, n, B, C]`."""
    n, _, _, channels = x.shape
    pooled = tf.nn.max_pool2d(tf.reshape(x, [1, n, n, -1]), 2, 2, "VALID")
    return tf.reshape(pooled, [n // 2, n // 2, -1, channels])


def losses_behind(step, cls):
    """Returns the bases of a step between `cls` and TrainStep that define `compute_loss`."""
    bases = type(step).__mro__
    return [base for base in bases[bases.index(cls) + 1 : bases.index(TrainStep)] if "compute_loss" in vars(base)]


def check_plain_loss(step, cls):
    """Raises `mnist.Error` if a base of a step behind `cls`, except `Winograd`, changes the cross-entropy."""
    for base in losses_behind(step, cls):
        if base is not Winograd:
            raise Error(f"{base.__name__} has to stand before {cls.__name__}, which expects the plain loss behind it.")


class Winograd(TrainStep):
    """A step that runs a `CNN` with Winograd convolutions, in the dtype of its policy."""

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        own = [getattr(type(model), name, None) for name in ("call", "features")]
        known = own == [CNN.call, CNN.features] and model.width == 1
        if not known or model.losses:
            found = "has its own losses" if known else f"is a {type(model).__name__}"
            raise Error(f"winograd's model {found}, expected a mnist.model.CNN with plain layers.")
        for cls in losses_behind(self, Winograd):
            raise Error(f"{cls.__name__} has to stand before Winograd, whose compute_loss is the last.")

    def compute_loss(self, images, labels):
        model, dtype = self.model, self.model.conv2.compute_dtype
        kernel1, kernel2, kernel3 = (layer.kernel.value for layer in (model.conv1, model.conv2, model.conv3))
        taps = tf.concat([tf.reshape(kernel1, [9, 32]), [model.conv1.bias.value]], 0)  # [10, 32]
        kernels = [taps, transform_kernel(CONV2.taps, kernel2), transform_kernel(CONV3.taps, kernel3)]
        kernels = [tf.cast(kernel, dtype) for kernel in kernels]
        biases = [tf.cast(layer.bias.value, dtype) for layer in (model.conv2, model.conv3)]
        logits = self._logits(tf.cast(images, dtype), kernels, biases)
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits)), logits

    def _logits(self, images, kernels, biases):
        # Puts height and width first, so that transforms and shifts work on long rows.
        images = tf.transpose(self.model.crop(images)[..., 0], [1, 2, 0])  # [26, 26, B]
        shifted = [tf.reshape(images[i : i + 24, j : j + 24], [-1]) for i in range(3) for j in range(3)]
        shifted.append(tf.ones_like(shifted[0]))  # for the bias
        x = tf.reshape(tf.matmul(tf.stack(shifted), kernels[0], transpose_a=True), [24, 24, -1, 32])
        x = tf.nn.relu(max_pool(x))  # [12, 12, B, 32]
        x = tf.nn.relu(tf.nn.bias_add(max_pool(convolve(x, kernels[1], CONV2)), biases[0]))  # [5, 5, B, 64]
        x = tf.nn.relu(tf.nn.bias_add(convolve(x, kernels[2], CONV3), biases[1]))  # [3, 3, B, 64]
        x = tf.reshape(tf.transpose(x, [2, 0, 1, 3]), [-1, 576])
        return self.model.logits(self.model.dense1(x))


if __name__ == "__main__":
    train.launch(Winograd)
