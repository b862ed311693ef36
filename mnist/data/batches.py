"""In which order the examples flow: tf.data over indices, each epoch's order given.

TensorFlow is imported in the functions, so that who reads files does without.
"""

from mnist import Error
from mnist.data import readers

import numpy as np


def epoch_order(num_examples, seed, epoch):
    """The order of one epoch: int32 `[num_examples]`, a pure function of `(seed, epoch)`."""
    import tensorflow as tf

    return tf.random.experimental.stateless_shuffle(tf.range(num_examples), seed=[seed, epoch])


def check_order(order, num_examples, source):
    """Returns an order as int32 `[num_examples]`. Raises: `mnist.Error` if it is none; `source` is who made it."""
    import tensorflow as tf

    order = np.asarray(order)
    if order.shape != (num_examples,) or order.dtype.kind not in "ui":
        raise Error(f"{source} gave {order.dtype} {list(order.shape)}, expected integers [{num_examples}].")
    if order.min() < 0 or order.max() >= num_examples:
        raise Error(f"{source} gave indices {order.min()} to {order.max()}, expected 0 to {num_examples - 1}.")
    return tf.constant(order, tf.int32)


def as_tensors(examples):
    """Images and labels as tensors, on the memory of the NumPy arrays if it can be: a large data set is held once.

    To change the arrays is then to change the batches.
    """
    return tuple(_as_tensor(array) for array in examples)


def _as_tensor(array):
    import tensorflow as tf

    if array.ctypes.data % readers.ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)


def epoch_batches(images, labels, order, batch_size, first_batch=0):
    """The batches of one epoch, from the one after the first `first_batch` on.

    Each is one slice of the order and one gather, so that beginning at any batch costs nothing and no state of
    the pipeline needs to be saved. The last batch is short if `batch_size` does not divide the number of examples.

    Args:
      images: uint8 `[N, 28, 28, 1]`, labels: uint8 `[N]`, tensors.
      order: int32 `[N]`, indices of examples.

    Returns: a `tf.data.Dataset` of `(uint8 images [B, 28, 28, 1], uint8 labels [B])`.
    """

    import tensorflow as tf

    def gather_batch(step):
        indices = order[step * batch_size : (step + 1) * batch_size]
        return tf.gather(images, indices), tf.gather(labels, indices)

    num_batches = steps_per_epoch(len(labels), batch_size)
    options = tf.data.Options()
    # The default rewrites find nothing to improve here, and copy all images into the graph that they look at.
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False  # its thread sleeps up to seconds, and the end of an iterator waits for it
    return tf.data.Dataset.range(first_batch, num_batches).map(gather_batch).prefetch(8).with_options(options)


def train_batches(examples, batch_size, *, seed, start_step=0):
    """The batches of all epochs in their default order, from `start_step` on, without end.

    Args:
      examples: a `data.Examples`.

    Returns: a `tf.data.Dataset` as `epoch_batches`.
    """
    import tensorflow as tf

    num_examples = len(examples.labels)
    if not 0 < batch_size <= num_examples:
        raise Error(f"--batch_size={batch_size} does not fit {num_examples:,} training images.")
    images, labels = as_tensors(examples)
    num_steps = steps_per_epoch(num_examples, batch_size)

    def batches(epoch):
        first_batch = tf.maximum(start_step - epoch * num_steps, 0)
        return epoch_batches(images, labels, epoch_order(num_examples, seed, epoch), batch_size, first_batch)

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return tf.data.Dataset.range(start_step // num_steps, tf.int64.max).flat_map(batches).with_options(options)


def steps_per_epoch(num_examples, batch_size):
    """Number of batches in an epoch, the short last one included."""
    return -(-num_examples // batch_size)
