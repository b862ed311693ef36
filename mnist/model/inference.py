"""Functions that work on any Keras model of images: predict, take features, count outputs, keep its state."""

import contextlib
import io

from mnist.data import SIDE

import keras
import numpy as np
import tensorflow as tf

IMAGE_SHAPE = (SIDE, SIDE, 1)


@tf.autograph.experimental.do_not_convert  # AutoGraph would only spend time: there is no Python control flow
def scale_images(images):
    """Scales uint8 images of any shape to float32 in [0, 1], the input of every model.

    Divides in float64, because Grappler turns a float32 `x / 255.0` into a product with the reciprocal. That product
    differs in the last bit from NumPy and `model.fit` for 126 of the 256 grey levels.
    """
    return tf.cast(tf.cast(images, tf.float64) / 255, tf.float32)


@tf.autograph.experimental.do_not_convert
def count_outputs(model):
    """Returns the number of logits that a model computes for an image."""
    with tf.init_scope(), keep_state(model):  # leaves a graph that is being traced
        return model(tf.zeros([1, *IMAGE_SHAPE]), training=False).shape[-1]


def make_predict_logits(model, batch_size=500):
    """Compiles inference over many images.

    Returns: a function from uint8 images `[N, 28, 28, 1]`, any N >= 1, to float32 logits `[N, classes]`. It uses every
      image: the last batch has any size from 2 to `batch_size + 1`.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, *IMAGE_SHAPE], tf.uint8)])
    def predict_logits(images):
        num_examples = tf.shape(images)[0]
        # A single last image joins the batch before, because oneDNN computes a batch of one with other last bits.
        num_batches = tf.maximum(1, -(-(num_examples - 1) // batch_size))
        logits = tf.TensorArray(tf.float32, num_batches, element_shape=[None, None], infer_shape=False)
        for i in tf.range(num_batches):
            end = tf.where(i == num_batches - 1, num_examples, (i + 1) * batch_size)
            batch = scale_images(images[i * batch_size : end])
            with keep_state(model):  # every batch starts from the same state, so that the batch size has no effect
                logits = logits.write(i, tf.cast(model(batch, training=False), tf.float32))
        return logits.concat()

    return predict_logits


def features_of(model, images):
    """Computes the input of a model's last layer for uint8 images `[N, 28, 28, 1]`.

    Calls the model's own method `features` if there is one. Else removes the last layer of a Sequential or functional
    model.

    Returns: float32 `[N, features]`, or None for any other model.
    """
    compute = getattr(model, "features", None)
    if compute is None and getattr(model, "inputs", None) and len(model.layers) > 1:
        compute = keras.Model(model.inputs, model.layers[-1].input)
    if compute is None:
        return None
    with keep_state(model):
        # 50 images at a time, because the activations of all of them would be the peak of a run's memory.
        parts = [compute(scale_images(images[i : i + 50])) for i in range(0, len(images), 50)]
        return np.concatenate([tf.cast(tf.reshape(x, [len(x), -1]), tf.float32).numpy() for x in parts])


def summarize_model(model):
    """Returns the table of `model.summary()` as text: layers, output shapes, parameters."""
    lines = []
    with contextlib.redirect_stdout(io.StringIO()):  # rich flushes stdout, which fails if its disk is full
        model.summary(line_length=80, print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines)


def call_to_train(model, images):
    """Computes a model's outputs in training mode. Like `fit`, passes `training` only if call() accepts it."""
    return model(images, training=True) if model._call_has_training_arg else model(images)


@contextlib.contextmanager
def keep_state(model, others=()):
    """Restores a model's variables at the end of a `with` block, in a graph and in eager mode.

    An evaluation, or a second forward pass of a batch, then changes no moving mean and no dropout seed.

    Args:
      model: a `keras.Model`.
      others: further variables to restore.
    """
    variables = [*(v.value for v in [*model.variables, *model.metrics_variables]), *others]
    before = [tf.identity(v) for v in variables]
    yield
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
