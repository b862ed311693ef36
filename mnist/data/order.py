"""The order of the examples in an epoch: made, checked, counted in batches."""

from mnist import Error

import numpy as np


def epoch_order(num_examples, seed, epoch):
    """Returns the default order of one epoch: int32 `[num_examples]`, a pure function of `(seed, epoch)`."""
    import tensorflow as tf

    return tf.random.experimental.stateless_shuffle(tf.range(num_examples), seed=[seed, epoch])


def check_order(order, num_examples, source):
    """Returns an order as an int32 tensor `[num_examples]`.

    Args:
      order: integers `[num_examples]`, indices of examples.
      source: a str. The name of what made the order, for messages.

    Raises: `mnist.Error` if the order has another shape or type, or an index out of range.
    """
    import tensorflow as tf

    order = np.asarray(order)
    if order.shape != (num_examples,) or order.dtype.kind not in "ui":
        raise Error(f"{source} gave {order.dtype} {list(order.shape)}, expected integers [{num_examples}].")
    if order.min() < 0 or order.max() >= num_examples:
        raise Error(f"{source} gave indices {order.min()} to {order.max()}, expected 0 to {num_examples - 1}.")
    return tf.constant(order, tf.int32)


def steps_per_epoch(num_examples, batch_size):
    """Returns the number of batches in an epoch, including the short last one."""
    return -(-num_examples // batch_size)
