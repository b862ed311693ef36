"""Batches of examples: tf.data over the indices of a given order."""

from mnist import Error
from mnist.data.order import epoch_order, steps_per_epoch
from mnist.data.readers import ALIGNMENT

import numpy as np


def as_tensors(examples):
    """Returns images, labels and any further arrays as tensors, which share the memory of aligned uint8 arrays.

    A large data set is then in memory once. A change to such an array changes the batches.
    """
    return tuple(_as_tensor(array) for array in examples)


def _as_tensor(array):
    import tensorflow as tf

    shared = array.dtype == np.uint8 and array.flags.c_contiguous and array.flags.writeable
    if shared and array.ctypes.data % ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)


def check_training_set(found, examples, num_classes, source):
    """Returns what a `training_set` returned: a list of images, labels as uint8, and any number of further arrays.

    Further arrays of float64 become float32.

    Args:
      found: a tuple of arrays `[N, ...]`.
      examples: the `data.Examples` that it was made of.
      num_classes: an int. The number of classes.
      source: a str. The name of what made the arrays, for messages.

    Raises: `mnist.Error` for other shapes and types, or a label that is not a class.
    """
    if not isinstance(found, (tuple, list)) or len(found) < 2:
        raise Error(f"{source} returned a {type(found).__name__}, expected images, labels and any further arrays.")
    images, labels, *more = (np.asarray(array) for array in found)
    more = [array.astype(np.float32) if array.dtype == np.float64 else array for array in more]  # as Keras does
    for name, array, kinds, shape in (
        ("images", images, "u", examples.images.shape),
        ("labels", labels, "ui", examples.labels.shape),
        *((f"array {i}", array, "buif", (len(examples.labels), *array.shape[1:])) for i, array in enumerate(more, 2)),
    ):
        if array.shape != shape or array.dtype.kind not in kinds:
            expected = "uint8" if kinds == "u" else "integers" if kinds == "ui" else "numbers"
            raise Error(
                f"{source} returned {array.dtype} {list(array.shape)} for {name}, expected {expected} {list(shape)}."
            )
    if images.dtype != np.uint8 or labels.min() < 0 or labels.max() >= num_classes:
        raise Error(
            f"{source} returned {images.dtype} images with labels {labels.min()} to {labels.max()}, "
            f"expected uint8 images with labels 0 to {num_classes - 1}."
        )
    return [images, labels.astype(np.uint8, copy=False), *more]


def epoch_batches(images, labels, order, batch_size, first_batch=0, more=()):
    """Returns the batches of one epoch, beginning at any batch.

    Each batch is one slice of the order and one gather, so that no state of the pipeline needs to be saved. The last
    batch is short if `batch_size` does not divide the number of examples.

    Args:
      images: a uint8 tensor `[N, 28, 28, 1]`.
      labels: a uint8 tensor `[N]`.
      order: an int32 tensor `[N]`. The indices of examples.
      batch_size: an int >= 1.
      first_batch: an int. The number of batches to skip.
      more: further tensors `[N, ...]`.

    Returns: a `tf.data.Dataset` of `(uint8 images [B, 28, 28, 1], uint8 labels [B], *further tensors [B, ...])`.
    """

    import tensorflow as tf

    def gather_batch(step):
        indices = order[step * batch_size : (step + 1) * batch_size]
        return tuple(tf.gather(tensor, indices) for tensor in (images, labels, *more))

    numbers = tf.data.Dataset.range(first_batch, steps_per_epoch(len(labels), batch_size))
    return numbers.map(gather_batch).prefetch(8).with_options(_options())


def train_batches(examples, batch_size, *, seed, start_step=0):
    """Returns the batches of all epochs in their default order, without end.

    Args:
      examples: a `data.Examples`.
      batch_size: an int from 1 to the number of examples.
      seed: an int. The seed of the orders.
      start_step: an int. The number of batches to skip, counted from the first epoch.

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

    epochs = tf.data.Dataset.range(start_step // num_steps, tf.int64.max)
    return epochs.flat_map(batches).with_options(_options())


def _options():
    import tensorflow as tf

    options = tf.data.Options()
    # tf.data's default rewrites find nothing to improve here. They copy all images into the graph that they search.
    options.experimental_optimization.apply_default_optimizations = False
    # The thread of tf.data's autotune sleeps for seconds, and the end of an iterator waits for it.
    options.autotune.enabled = False
    return options
