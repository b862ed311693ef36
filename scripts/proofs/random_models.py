"""Counts the refusals of --check_step among random models, of which none has a fault of its own.

    python scripts/proofs/random_models.py --count=1000

Draws the layers, the dtype, the loss, the optimizer and the images of each model from its number. Images and weights
are also zero or constant, so that layers meet ties and kinks. Prints each refusal, and exits with 1 if there is one.
"""

import collections
import sys
import time

from mnist import Error, data
from mnist.step import Context, TrainStep, check_compiled, compile_step

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

_COUNT = flags.DEFINE_integer("count", 1000, "Models to draw.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first", 0, "Number of the first model.", lower_bound=0)
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print each model.")

L = keras.layers
_ACTIVATIONS = [None, "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid"]
_ACTIVATIONS += ["hard_sigmoid", "hard_silu", "softplus", "softsign", "softmax", "exponential", "hard_tanh", "celu"]
_ACTIVATIONS += ["squareplus", "soft_shrink", "tanh_shrink", "log_sigmoid", "sparse_plus"]


class Variant(TrainStep):
    """A step with one of several losses."""

    kind = "plain"

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        if self.kind == "two":
            return {"first": loss, "second": tf.reduce_mean(tf.square(logits)) / 10}, logits
        if self.kind == "smooth":
            loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(labels, logits)
        elif self.kind == "squares":
            loss = keras.losses.MeanSquaredError()(labels, tf.nn.sigmoid(logits))
        elif self.kind == "focal":
            loss = keras.losses.CategoricalFocalCrossentropy(from_logits=True)(labels, logits)
        elif self.kind == "hinge":
            loss = keras.losses.CategoricalHinge()(labels, logits)
        elif self.kind == "huber":
            loss = keras.losses.Huber()(labels, logits)
        return (loss if self.kind == "plain" else self.add_losses(loss)), logits

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        if self.kind == "noisy":
            images += 0.1 * tf.random.stateless_normal(tf.shape(images), self.random_seed("noise"))
        return images, labels


_KINDS = ["plain", "plain", "two", "smooth", "squares", "focal", "hinge", "huber", "noisy"]
_OPTIMIZERS = ["adam", "sgd", "rmsprop", "adamw", "lion", "nadam", "adagrad", "adamax", "ftrl"]


@tf.custom_gradient
def _float32_alone(x):
    return tf.identity(x), lambda dy: tf.constant(1.0) * dy  # raises an error in float64


class Single(L.Layer):
    """A layer that computes in float32 alone, whatever the dtype of the others."""

    def call(self, x):
        return tf.cast(_float32_alone(tf.cast(x, tf.float32)), x.dtype)


class Alone(L.Layer):
    """A layer that cannot compute in float64."""

    def call(self, x):
        return tf.constant(1.0) * x


def draw_model(random, policy):
    """Returns a random model, and a list of texts that describes it."""
    said = []

    def pick(*values):
        return values[random.integers(len(values))]

    def some(**kwargs):
        kwargs["activation"] = pick(*_ACTIVATIONS, "relu", "relu", "relu")
        if random.random() < 0.1:
            kwargs["kernel_initializer"] = pick("zeros", "ones", "orthogonal", "he_normal", "random_normal")
        if random.random() < 0.1:
            kwargs["kernel_regularizer"] = pick("l1", "l2", "L1L2")
        if random.random() < 0.1:
            kwargs["activity_regularizer"] = pick("l1", "l2")
        if random.random() < 0.1:
            kwargs["kernel_constraint"] = pick("non_neg", "max_norm", "unit_norm")
        kwargs["use_bias"] = bool(random.random() < 0.8)
        if random.random() < 0.2:
            kwargs["bias_initializer"] = pick("ones", "random_normal")
        return kwargs

    def image_layer(channels):
        size, padding = int(pick(1, 2, 3, 5)), pick("same", "valid")
        kind = pick(
            "conv", "conv", "conv", "dilated", "grouped", "depthwise", "separable", "transpose", "max", "average"
        )
        filters = int(pick(2, 4, 6, 8))
        if kind == "conv":
            return L.Conv2D(filters, size, strides=int(pick(1, 2, 3)), padding=padding, **some())
        if kind == "dilated":
            return L.Conv2D(filters, size, dilation_rate=2, padding=padding, **some())
        if kind == "grouped" and channels % 2 == 0:
            return L.Conv2D(filters, size, groups=2, padding=padding, **some())
        if kind == "depthwise":
            return L.DepthwiseConv2D(
                size, depth_multiplier=int(pick(1, 2)), padding=padding, activation=pick(None, "relu")
            )
        if kind == "separable":
            return L.SeparableConv2D(filters, size, padding=padding, activation=pick(None, "relu", "relu6", "gelu"))
        if kind == "transpose":
            return L.Conv2DTranspose(filters, size, strides=int(pick(1, 2)), padding=padding, **some())
        pool = L.MaxPooling2D if kind == "max" else L.AveragePooling2D
        return pool(int(pick(2, 3)), strides=int(pick(1, 2, 3)), padding=padding)

    def other_layer(channels):
        kind = pick("batch", "layer", "group", "unit", "dropout", "spatial", "noise", "activation", "prelu", "pad",
                    "up", "crop", "residual", "alpha", "gaussian", "relu", "attention")  # fmt: skip
        return {
            "batch": lambda: L.BatchNormalization(scale=bool(pick(0, 1)), center=bool(pick(0, 1))),
            "layer": lambda: L.LayerNormalization(),
            "group": lambda: L.GroupNormalization(int(pick(1, 2)) if channels % 2 == 0 else 1),
            "unit": lambda: L.UnitNormalization(),
            "dropout": lambda: L.Dropout(0.3),
            "spatial": lambda: L.SpatialDropout2D(0.3),
            "noise": lambda: L.GaussianNoise(0.1),
            "activation": lambda: L.Activation(pick(*_ACTIVATIONS[1:])),
            "prelu": lambda: L.PReLU(shared_axes=[1, 2]),
            "pad": lambda: L.ZeroPadding2D(1),
            "up": lambda: L.UpSampling2D(2, interpolation=pick("nearest", "bilinear")),
            "crop": lambda: L.Cropping2D(1),
            "alpha": lambda: L.AlphaDropout(0.2),
            "gaussian": lambda: L.GaussianDropout(0.2),
            "relu": lambda: L.ReLU(negative_slope=0.1, threshold=0.0),
            "residual": lambda: "residual",
            "attention": lambda: "attention",
        }[kind]()

    inputs = x = keras.Input([28, 28, 1])
    x = pick(L.AveragePooling2D(2), L.Conv2D(4, 3, strides=2, **some()), L.Conv2D(4, 5, strides=3, **some()))(x)
    for _ in range(random.integers(1, 5)):
        height, channels = x.shape[1], x.shape[-1]
        layer = image_layer(channels) if random.random() < 0.5 and height > 5 else other_layer(channels)
        if getattr(layer, "name", "").startswith("up_sampling") and height > 10:
            continue
        if getattr(layer, "name", "").startswith("cropping") and height < 4:
            continue
        if layer == "residual":
            x = L.Add()([x, L.Conv2D(channels, 3, padding="same", **some())(x)])
        elif layer == "attention":
            small = L.AveragePooling2D(2, padding="same")(x) if height > 6 else x
            rows = L.Reshape([small.shape[1] * small.shape[2], channels])(small)
            rows = L.MultiHeadAttention(2, 4, dropout=float(pick(0.0, 0.1)))(rows, rows)
            x = L.Reshape([rows.shape[1], 1, channels])(rows)
        else:
            x = layer(x)
        said.append(layer if isinstance(layer, str) else f"{layer.name}{x.shape[1:]}")
        if x.shape[1] * x.shape[2] == 0:
            raise ValueError("nothing is left")
        if x.shape[2] == 1:
            break
    if random.random() < 0.2:
        x = Single()(x) if policy != "float32" or random.random() < 0.5 else Alone()(x)
        said.append(x._keras_history.operation.name)
    head = pick("flatten", "average", "maximum", "gru", "lstm", "simple", "both", "einsum")
    said.append(head)
    rows = L.Reshape([x.shape[1], x.shape[2] * x.shape[3]])(x)
    if head in ("gru", "lstm", "simple", "both"):
        cell = {"gru": L.GRU, "lstm": L.LSTM, "simple": L.SimpleRNN}.get(head, L.GRU)
        inner = cell(6, activation=pick("tanh", "relu", "sigmoid"))
        x = (L.Bidirectional(inner) if head == "both" else inner)(rows)
    elif head == "einsum":
        x = L.Flatten()(L.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d", activation="relu")(rows))
    else:
        x = {"flatten": L.Flatten, "average": L.GlobalAveragePooling2D, "maximum": L.GlobalMaxPooling2D}[head]()(x)
    if random.random() < 0.5:
        x = L.Dense(8, **some())(x)
    last = {"dtype": "float32"} if random.random() < 0.7 else {}
    if random.random() < 0.15:
        last |= {"kernel_initializer": "zeros"}
    return keras.Model(inputs, L.Dense(10, **last)(x)), said


def draw_images(random, examples, count):
    """Returns uint8 images `[count, 28, 28, 1]`: real ones, or such with many ties."""
    images = examples.images[random.choice(len(examples.images), count, replace=False)].copy()
    kind = random.integers(8)
    if kind == 0:
        images[:] = 0
    elif kind == 1:
        images[:] = random.integers(256)
    elif kind == 2:
        images[: count // 2] = 0
    elif kind == 3:
        images[:] = (images > 127) * 255
    elif kind == 4:
        images[:] = random.integers(0, 256, images.shape)
    return images


def judge(number, examples):
    """Draws a model by its number and checks it. Returns: what happened, and the description of the model."""
    random = np.random.default_rng(number)
    keras.utils.set_random_seed(number)
    policy = str(random.choice(["float32", "float32", "float32", "mixed_bfloat16", "mixed_float16", "float64"]))
    kind, name = str(random.choice(_KINDS)), str(random.choice(_OPTIMIZERS))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    said = [policy, kind, name]
    try:
        model, layers = draw_model(random, policy)
        said += layers
    except ValueError as error:
        return f"no model: {error!s:.60}", said
    finally:
        keras.config.set_dtype_policy(before)
    cls = type("Drawn", (Variant,), {"kind": kind})
    try:
        step = cls(model, keras.optimizers.get({"class_name": name, "config": {}}), seed=number)
    except Error as error:
        return f"no step: {error!s:.80}", said
    batch = [tf.constant(draw_images(random, examples, 8)), tf.constant(examples.labels[:8])]
    spec = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in batch]
    try:
        function = compile_step(step).get_concrete_function(*spec)
    except (TypeError, ValueError, tf.errors.OpError, Error) as error:  # which no run would get past, either
        return f"no graph: {str(error).strip().splitlines()[-1]:.150}", said
    bits = [v.numpy().tobytes() for v in model.variables]
    try:
        result = check_compiled(step, Context(), function, [batch])
    except Error as error:
        return f"refused: {error}", said
    if [v.numpy().tobytes() for v in model.variables] != bits:
        return "refused: the variables have changed", said
    return result or "passed", said


def main(_):
    examples, kinds, start = data.load("digits").train, collections.Counter(), time.time()
    number = _FIRST.value
    while sum(kinds[kind] for kind in ("passed", "refused")) < _COUNT.value:
        result, said = judge(number, examples)
        kinds[result.partition(":")[0]] += 1
        if result.startswith("refused") or _VERBOSE.value:
            print(f"model {number} ({', '.join(said)}): {result}", flush=True)
        keras.backend.clear_session()
        number += 1
    print(f"{number - _FIRST.value} models in {time.time() - start:.0f} s:", dict(kinds))
    sys.exit(1 if kinds["refused"] else 0)


if __name__ == "__main__":
    app.run(main)
