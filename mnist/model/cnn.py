"""The network: a small convolutional classifier with 93,322 parameters."""

import inspect

from mnist.data import NUM_CLASSES
from mnist.model.inference import IMAGE_SHAPE

import keras
from absl import logging
from keras import layers, ops

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"Keras was imported with the backend {keras.config.backend()} before mnist, which requires tensorflow."
    )
if keras.config.image_data_format() != "channels_last":
    logging.warning("channels_first of keras.json is ignored, because the images are [B, 28, 28, 1].")
    keras.config.set_image_data_format("channels_last")


class _Constructing(type(keras.Model)):
    """The class of `CNN`, which builds a model once the constructor of its own class has made all layers."""

    def __call__(cls, *args, **kwargs):
        model = super().__call__(*args, **kwargs)
        if not model.built:
            model.build()  # creates all variables now, and gives summary() its shapes
        return model


@keras.saving.register_keras_serializable(package="mnist")
class CNN(keras.Model, metaclass=_Constructing):
    """Three convolutions and two dense layers, as in TensorFlow's "Convolutional Neural Network" tutorial.

    Maps float32 images `[B, 28, 28, 1]` in [0, 1] to float32 logits `[B, num_classes]`. The constructor of a subclass
    may make more layers, before or after it calls `super().__init__()`.

    Args:
      num_classes: int. The number of logits. Default: 10.
      dtype: str. The layers' dtype policy, "float32" or "mixed_bfloat16" (weights and logits stay
        float32). Default: Keras' own, which `--precision` sets.
    """

    width = 1  # a subclass multiplies the channels of each layer by it
    first = 0  # first row and column of the 26x26 crop: 0 to 2

    def __init__(self, *, name="cnn", **kwargs):
        # Not in the signature, because Keras would put the default into the description of every CNN.
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

    def build(self, input_shape=None):
        self.call(keras.Input(IMAGE_SHAPE))
        self.built = True

    def call(self, images, training=False):
        return self.logits(self.features(images))

    def crop(self, images):
        """Crops images `[B, 28, 28, 1]` to the pixels that the network uses, `[B, 26, 26, 1]`."""
        return images[:, self.first : self.first + 26, self.first : self.first + 26]

    def features(self, images):
        """Computes the input of the last layer, `[B, 64]`."""
        # Unpadded convolutions and pooling drop two rows and two columns before the logits. Without these pixels
        # outputs and gradients keep their bits, for 15 % fewer multiplications. Max pooling comes before relu,
        # because relu then computes a quarter of the values, with the same bits forward and backward.
        x = ops.relu(self.pool1(self.conv1(self.crop(images))))  # [B, 12, 12, 32]
        x = ops.relu(self.pool2(self.conv2(x)))  # [B, 5, 5, 64]
        x = self.flatten(self.conv3(x))  # [B, 576]
        return self.dense1(x)

    def get_config(self):
        config, num_classes = super().get_config(), self.logits.units
        if num_classes != NUM_CLASSES and self.takes_num_classes():  # older checkpoints have no such key
            config["num_classes"] = num_classes
        return config

    # Keras then still adds the constructor arguments of a subclass to the config, or raises if it cannot.
    get_config._is_default = True

    @classmethod
    def takes_num_classes(cls):
        """Returns whether the constructor of this class or subclass accepts `num_classes`."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
