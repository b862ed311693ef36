"""The network, a small convolutional classifier with 93,322 parameters, and what one does with any model."""

import contextlib
import inspect
import io

from mnist.data import NUM_CLASSES, SIDE

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras import layers, ops

IMAGE_SHAPE = (SIDE, SIDE, 1)


if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"Keras was imported with the backend {keras.config.backend()} before mnist, which takes TensorFlow's."
    )
if keras.config.image_data_format() != "channels_last":
    logging.warning("channels_first of keras.json is passed over: images are [B, 28, 28, 1] here.")
    keras.config.set_image_data_format("channels_last")


@keras.saving.register_keras_serializable(package="mnist")
class CNN(keras.Model):
    """Three convolutions and two dense layers, as in TensorFlow's "Convolutional Neural Network" tutorial.

    Maps float32 images `[B, 28, 28, 1]` in [0, 1] to float32 logits `[B, num_classes]`.

    Args:
      num_classes: how many logits. Default: 10.
      dtype: the layers' dtype policy, "float32" or "mixed_bfloat16" (weights and logits stay
        float32). Default: Keras' own, which `--precision` sets.
    """

    width = 1  # times as many channels in each layer, in a subclass
    first = 0  # of the 26 rows and columns that are looked at, the first: 0 to 2

    def __init__(self, *, name="cnn", **kwargs):
        # Not in the signature: Keras would describe every CNN with the default.
        num_classes = kwargs.pop("num_classes", NUM_CLASSES)
        super().__init__(name=name, **kwargs)
        policy = self.dtype_policy
        self.conv1 = layers.Conv2D(32 * self.width, 3, dtype=policy, name="conv1")
        self.pool1 = layers.MaxPooling2D(dtype=policy, name="pool1")
        self.conv2 = layers.Conv2D(64 * self.width, 3, dtype=policy, name="conv2")
        self.pool2 = layers.MaxPooling2D(dtype=policy, name="pool2")
        self.conv3 = layers.Conv2D(64 * self.width, 3, activation="relu", dtype=policy, name="conv3")
        self.flatten = layers.Flatten(dtype=policy, name="flatten")
        self.dense1 = layers.Dense(64 * self.width, activation="relu", dtype=policy, name="dense1")
        self.logits = layers.Dense(num_classes, dtype="float32", name="logits")
        # Building on a symbolic input makes all variables now and gives summary() its shapes.
        self.build()

    def build(self, input_shape=None):
        self.call(keras.Input(IMAGE_SHAPE))
        self.built = True

    def call(self, images, training=False):
        return self.logits(self.features(images))

    def crop(self, images):
        """What of images `[B, 28, 28, 1]` is looked at, `[B, 26, 26, 1]`."""
        return images[:, self.first : self.first + 26, self.first : self.first + 26]

    def features(self, images):
        """What the last layer decides by, `[B, 64]`."""
        # Unpadded convolutions and pooling never let two of the rows and columns reach the logits.
        # Without them outputs and gradients keep their bits, at 15 % fewer multiplications. The largest
        # of four values is rectified with the same bits, forward and back, as four before pooling.
        x = ops.relu(self.pool1(self.conv1(self.crop(images))))  # [B, 12, 12, 32]
        x = ops.relu(self.pool2(self.conv2(x)))  # [B, 5, 5, 64]
        x = self.flatten(self.conv3(x))  # [B, 576]
        return self.dense1(x)

    def get_config(self):
        config, num_classes = super().get_config(), self.logits.units
        if num_classes != NUM_CLASSES and self.takes_num_classes():  # runs of older versions tell of no number
            config["num_classes"] = num_classes
        return config

    get_config._is_default = True  # Keras adds the arguments of a subclass all the same, or says that it cannot

    @classmethod
    def takes_num_classes(cls):
        """Whether the class, a subclass maybe, can be made for any number of classes."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


@tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes time
def scale_images(images):
    """Scales uint8 images of any shape to float32 in [0, 1]: what a model is given.

    Divides in float64: a graph turns a float32 `x / 255.0` into a multiplication by the reciprocal,
    which moves 126 of the 256 grey levels by one last bit from what NumPy and `model.fit` see.
    """
    return tf.cast(tf.cast(images, tf.float64) / 255, tf.float32)


@tf.autograph.experimental.do_not_convert
def count_outputs(model):
    """How many logits a model has for an image."""
    with tf.init_scope(), keep_state(model):  # out of a graph that is being traced
        return model(tf.zeros([1, *IMAGE_SHAPE]), training=False).shape[-1]


def make_predict_logits(model, batch_size=500):
    """Compiles inference over many images.

    Returns: a function from uint8 images `[N, 28, 28, 1]`, any N >= 1, to float32 logits `[N, classes]`.
      Every image counts: the last batch is as short as it needs to be, or longer by one.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, *IMAGE_SHAPE], tf.uint8)])
    def predict_logits(images):
        num_examples = tf.shape(images)[0]
        # No batch of one image: oneDNN takes another way for it, and other last bits. It joins the batch before.
        num_batches = tf.maximum(1, -(-(num_examples - 1) // batch_size))
        logits = tf.TensorArray(tf.float32, num_batches, element_shape=[None, None], infer_shape=False)
        for i in tf.range(num_batches):
            end = tf.where(i == num_batches - 1, num_examples, (i + 1) * batch_size)
            batch = scale_images(images[i * batch_size : end])
            with keep_state(model):  # so that each batch has the same, however many there are
                logits = logits.write(i, tf.cast(model(batch, training=False), tf.float32))
        return logits.concat()

    return predict_logits


def features_of(model, images):
    """What the last layer of a model decides by, of uint8 images `[N, 28, 28, 1]`.

    Returns: float32 `[N, features]`; None for a model that has no method `features` of images, and whose last layer
      cannot be taken off.
    """
    find = getattr(model, "features", None)
    if find is None and getattr(model, "inputs", None) and len(model.layers) > 1:  # Sequential or functional
        find = keras.Model(model.inputs, model.layers[-1].input)
    if find is None:
        return None
    with keep_state(model):
        # Few at a time: what a layer answers to all of them would be the most that a run holds in memory.
        parts = [find(scale_images(images[i : i + 50])) for i in range(0, len(images), 50)]
        return np.concatenate([tf.cast(tf.reshape(x, [len(x), -1]), tf.float32).numpy() for x in parts])


def summarize_model(model):
    """The table of `model.summary()`: layers, output shapes, parameters."""
    lines = []
    with contextlib.redirect_stdout(io.StringIO()):  # rich flushes it, which may be full
        model.summary(line_length=80, print_fn=lambda line, **_: lines.append(line))  # of any terminal
    return "\n".join(lines)


def call_to_train(model, images):
    """A model's answers in training mode, called as `fit` calls it: with `training` if its call() takes that."""
    return model(images, training=True) if model._call_has_training_arg else model(images)


@contextlib.contextmanager
def keep_state(model, others=()):
    """While entered, in a graph or out of one, what layers write (moving means, seeds) is taken back at the end.

    For a pass that is not to count: of an evaluation, or a further one over a batch in one step. `others` are further
    variables that it may write.
    """
    variables = [*(v.value for v in [*model.variables, *model.metrics_variables]), *others]
    before = [tf.identity(v) for v in variables]
    yield
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
