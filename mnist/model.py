"""The network: a small convolutional classifier with 93,322 parameters."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="mnist")
class CNN(keras.Model):
    """Three convolutions and two dense layers, as in TensorFlow's "Convolutional Neural Network" tutorial.

    Maps float32 images `[B, 28, 28, 1]` in [0, 1] to float32 logits `[B, 10]`.

    Args:
      dtype: the layers' dtype policy, "float32" or "mixed_bfloat16" (weights and logits stay
        float32).
    """

    def __init__(self, *, name="cnn", **kwargs):
        super().__init__(name=name, **kwargs)
        policy = self.dtype_policy
        self.conv1 = layers.Conv2D(32, 3, dtype=policy, name="conv1")
        self.pool1 = layers.MaxPooling2D(dtype=policy, name="pool1")
        self.conv2 = layers.Conv2D(64, 3, dtype=policy, name="conv2")
        self.pool2 = layers.MaxPooling2D(dtype=policy, name="pool2")
        self.conv3 = layers.Conv2D(64, 3, activation="relu", dtype=policy, name="conv3")
        self.flatten = layers.Flatten(dtype=policy, name="flatten")
        self.dense1 = layers.Dense(64, activation="relu", dtype=policy, name="dense1")
        self.logits = layers.Dense(10, dtype="float32", name="logits")
        # Building on a symbolic input makes all variables now and gives summary() its shapes.
        self.build()

    def build(self, input_shape=None):
        self.call(keras.Input([28, 28, 1]))
        self.built = True

    def call(self, images, training=False):
        # Unpadded convolutions and pooling never let rows and columns 26 and 27 reach the logits.
        # Without them outputs and gradients keep their bits, at 15 % fewer multiplications. The largest
        # of four values is rectified with the same bits, forward and back, as four before pooling.
        x = ops.relu(self.pool1(self.conv1(images[:, :26, :26])))  # [B, 12, 12, 32]
        x = ops.relu(self.pool2(self.conv2(x)))  # [B, 5, 5, 64]
        x = self.flatten(self.conv3(x))  # [B, 576]
        return self.logits(self.dense1(x))


def summarize_model(model):
    """The table of `model.summary()`: layers, output shapes, parameters."""
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines)
