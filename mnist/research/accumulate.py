"""Gradient accumulation: the batch in k slices, one update with the mean of their gradients.

The same update as that of the whole batch but for round-off. The slices are independent in the graph,
so that on a CPU each can have a core of its own, which is faster than sharing every operation:

    python -m mnist.research.accumulate --slices=2 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.22 ± 0.07 %.
The plain step gives 99.26 ± 0.08 %.
"""

import itertools

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

import tensorflow as tf


def slice_bounds(batch_size, slices):
    """Parts of a batch, in order: `slices` triples of where one begins, where it ends and its size.

    With fewer images than slices some have size 0. Such a slice still holds one image, to be left out:
    pooling in TensorFlow fails on an empty batch.
    """
    ends = [batch_size * i // slices for i in range(slices + 1)]
    return [(begin, tf.maximum(end, begin + 1), end - begin) for begin, end in itertools.pairwise(ends)]


def _map(function, *structures):
    """`tf.nest.map_structure`, but a gradient that is None stays None."""
    return tf.nest.map_structure(lambda *xs: None if xs[0] is None else function(*xs), *structures)


class Accumulate(TrainStep):
    """Averages the gradients of slices, weighted by their sizes."""

    slices = Setting(2, "Parts of a batch; 1: the batch as it is.", low=1)

    def compute_gradients(self, images, labels):
        batch_size = tf.shape(images)[0]
        parts = []
        for begin, end, size in slice_bounds(batch_size, self.slices):
            share = tf.cast(size, tf.float32) / tf.cast(batch_size, tf.float32)
            part = super().compute_gradients(images[begin:end], labels[begin:end])
            parts.append(_map(lambda x, share=share: x * tf.cast(share, x.dtype), part))
        return _map(lambda *xs: tf.add_n(xs), *parts)


if __name__ == "__main__":
    train.launch(Accumulate)
