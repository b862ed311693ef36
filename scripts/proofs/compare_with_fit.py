"""Compares this loop with model.fit, bit for bit: python scripts/proofs/compare_with_fit.py

Trains the Sequential model of the tutorials (softmax, one-hot labels, categorical_crossentropy) with `model.fit`, and
the CNN with the loop of this project. Both start with the same weights and see the same batches. After each epoch it
compares every weight, every optimizer slot, the loss and the accuracy, and at the end the evaluated weights. Exits with
0 only if all are equal to the last bit.

`--feature=all` compares further features of Keras on a small network. They are models, layers and optimizers that
change what `fit` computes, a row of `make_features` each.
"""

import functools

from mnist import Error, data
from mnist.cli import run
from mnist.data import NUM_CLASSES, steps_per_epoch, train_batches
from mnist.metrics import RunningMeans
from mnist.model import CNN, IMAGE_SHAPE
from mnist.settings import Setting, local_path
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import tensorflow as tf

STEPS_PER_LOOP = 100


def make_optimizers(total_steps):
    """Returns a dict from names to constructors of the optimizers to compare."""
    optimizers = keras.optimizers
    return {
        "adam": lambda: optimizers.Adam(),
        "adam_clipnorm": lambda: optimizers.Adam(global_clipnorm=1.0),
        "adam_cosine": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(2e-3, total_steps)),
        "sgd_momentum": lambda: optimizers.SGD(0.01, momentum=0.9),
    }


def make_sequential():
    """Returns the network of the tutorials, which ends with a softmax."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(NUM_CLASSES, activation="softmax"),
        ]
    )


class OwnLosses(keras.layers.Layer):
    """Identity with three losses: a scalar, one for each image, and a scalar in training only."""

    def call(self, x, training=False):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        self.add_loss(0.001 * keras.ops.sum(keras.ops.abs(x), axis=1))
        if training:
            self.add_loss(0.02 * keras.ops.max(x))
        return x


def make_small(*inner, dense=None, frozen=False):
    """Returns a function that makes a small Sequential to logits.

    Args:
      inner: constructors of layers before the last.
      dense: a dict. Arguments of the last layer.
      frozen: whether the first layer is not trained.
    """

    def make():
        layers = keras.layers
        first = layers.Conv2D(4, 5, strides=3, activation="relu", trainable=not frozen)
        last = layers.Dense(NUM_CLASSES, **(dense or {}))
        return keras.Sequential(
            [keras.Input(IMAGE_SHAPE), first, layers.Flatten(), *(layer() for layer in inner), last]
        )

    return make


class UnusedHead(keras.Model):
    """Model with an unused layer, whose variables get no gradient."""

    def __init__(self):
        super().__init__()
        self.flatten, self.used, self.unused = keras.layers.Flatten(), *map(keras.layers.Dense, (NUM_CLASSES, 3))
        self.used.build([None, 784])
        self.unused.build([None, 784])
        self.built = True

    def call(self, images):
        return self.used(self.flatten(images))


class NoTraining(UnusedHead):
    """Model whose call() has no argument `training`, so that `fit` runs its layers in inference mode."""

    def __init__(self):
        super().__init__()
        self.dropout, self.norm = keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization()
        self.norm.build([None, 784])

    def call(self, images):
        return self.used(self.norm(self.dropout(self.flatten(images))))


class Centralized(keras.optimizers.SGD):
    """Optimizer that overrides `apply_gradients`, and subtracts the mean from each gradient."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients((gradient - keras.ops.mean(gradient), v) for gradient, v in grads_and_vars)


def make_recurrent():
    """Returns a small recurrent network. Its dropout advances its seed in evaluations, too."""
    layers = keras.layers
    rows = [keras.Input(IMAGE_SHAPE), layers.Reshape(IMAGE_SHAPE[:2])]
    return keras.Sequential([*rows, layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2), layers.Dense(NUM_CLASSES)])


def make_lora():
    """Returns a small model that trains only a low-rank update of its last layer."""
    model = make_small()()
    model.layers[-1].enable_lora(2)
    return model


def make_features():
    """Returns a dict from the names of --feature to two constructors, of a model to logits and of an optimizer."""
    layers, optimizers, regularizers = keras.layers, keras.optimizers, keras.regularizers
    adam, sgd = optimizers.Adam, optimizers.SGD
    l2, l1 = regularizers.L2(0.1), regularizers.L1(0.01)
    orthogonal = regularizers.OrthogonalRegularizer(0.01, "columns")
    max_norm = keras.constraints.MaxNorm(0.5)
    all_regularizers = {"kernel_regularizer": l2, "bias_regularizer": l1, "activity_regularizer": l2}
    dropout = functools.partial(layers.Dropout, 0.4)
    noise = functools.partial(layers.GaussianNoise, 0.1)
    activity = functools.partial(layers.ActivityRegularization, 0.01, 0.02)
    models = {
        "kernel_regularizer": make_small(dense={"kernel_regularizer": l2, "bias_regularizer": l1}),
        "activity_regularizer": make_small(dense={"activity_regularizer": l2}),
        "orthogonal_regularizer": make_small(dense={"kernel_regularizer": orthogonal}),
        "add_loss": make_small(OwnLosses),
        "add_loss_regularizer_dropout": make_small(OwnLosses, dropout, dense={"kernel_regularizer": l2}),
        "activity_layer": make_small(activity),
        "constraint": make_small(dense={"kernel_constraint": max_norm}),
        "frozen": make_small(frozen=True),
        "batch_norm": make_small(layers.BatchNormalization),
        "frozen_batch_norm": make_small(lambda: layers.BatchNormalization(trainable=False)),
        "dropout": make_small(dropout),
        "noise": make_small(noise),
        "spectral_norm": make_small(lambda: layers.SpectralNormalization(layers.Dense(16))),
        "lora": make_lora,
        "bfloat16_logits": make_small(dense={"dtype": "mixed_bfloat16"}),
        "float16_logits": make_small(dense={"dtype": "mixed_float16"}),
        "float64_logits": make_small(dense={"dtype": "float64"}),
        "no_training_argument": NoTraining,
        "recurrent_dropout": make_recurrent,
    }
    made = {
        "use_ema": lambda: adam(use_ema=True, ema_momentum=0.9),
        "ema_overwrite": lambda: adam(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
        "loss_scale_factor": lambda: adam(loss_scale_factor=1000.0),
        "loss_scale_optimizer": lambda: optimizers.LossScaleOptimizer(adam(), dynamic_growth_steps=4),
        "loss_scale_overflow": lambda: optimizers.LossScaleOptimizer(adam(), initial_scale=2.0**127),
        "gradient_accumulation": lambda: adam(gradient_accumulation_steps=3),
        "accumulation_clip_ema": lambda: sgd(0.1, gradient_accumulation_steps=2, global_clipnorm=0.1, use_ema=True),
        "clipnorm": lambda: adam(clipnorm=0.1),
        "clipvalue": lambda: adam(clipvalue=0.01),
        "weight_decay": lambda: adam(weight_decay=0.1),
        "amsgrad": lambda: adam(amsgrad=True),
        "schedule": lambda: sgd(optimizers.schedules.PiecewiseConstantDecay([5, 9], [0.1, 0.01, 0.2])),
        "own_apply_gradients": lambda: Centralized(0.1),
        "callable_rate": lambda: adam(lambda: 2e-3),
    }
    names = "Adadelta Adafactor Adagrad AdamW Adamax Ftrl Lamb Lion Muon Nadam RMSprop SGD"
    made |= {name: getattr(optimizers, name) for name in names.split()}
    together = make_small(
        *(layers.BatchNormalization, OwnLosses, dropout, noise, activity),
        dense=all_regularizers | {"kernel_constraint": max_norm},
    )
    return {
        **{name: (make_model, adam) for name, make_model in models.items()},
        **{name: (make_small(), make_optimizer) for name, make_optimizer in made.items()},
        "unused_head": (UnusedHead, lambda: optimizers.AdamW(weight_decay=0.1)),
        "use_ema_batch_norm": (make_small(layers.BatchNormalization), lambda: sgd(0.1, use_ema=True)),
        "together": (
            together,
            lambda: adam(weight_decay=0.1, amsgrad=True, clipvalue=0.01, use_ema=True, ema_overwrite_frequency=3),
        ),
    }


def snapshot(model, optimizer, metrics):
    """Copies all that is compared: lists of arrays of the weights, the slots and the metrics of the epoch."""
    return {
        "weights": [v.numpy() for v in model.variables],
        "slots": [keras.ops.convert_to_numpy(v) for v in optimizer.variables],
        "loss": [np.float32(metrics["loss"])],
        "accuracy": [np.float32(metrics["accuracy"])],
    }


def train_with_fit(model, optimizer, examples, *, batch_size, epochs, seed, loss="categorical_crossentropy"):
    """Trains with compile and fit. Images are divided by NumPy, as in tutorials. Returns: a snapshot of each epoch."""
    grey_levels = tf.constant((np.arange(256) / 255.0).astype(np.float32))
    batches = train_batches(examples, batch_size, seed=seed)
    batches = batches.map(lambda i, y: (tf.gather(grey_levels, tf.cast(i, tf.int32)), tf.one_hot(y, NUM_CLASSES)))
    model.compile(optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)
    snapshots = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: snapshots.append(snapshot(model, optimizer, logs))
    )
    steps = steps_per_epoch(len(examples.labels), batch_size)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, callbacks=[record], verbose=0)
    snapshots[-1]["evaluated"] = [v.numpy() for v in model.variables]
    return snapshots


def train_with_loop(model, optimizer, examples, *, batch_size, epochs, seed):
    """Trains with the step and the loop of this project. Returns: a snapshot of each epoch."""
    num_examples = len(examples.labels)
    batches = iter(train_batches(examples, batch_size, seed=seed))
    step = TrainStep(model, optimizer, seed=seed)
    _, train_loop = make_train_loop(step)
    snapshots = []
    for _ in range(epochs):
        means, left = RunningMeans(), num_examples
        while left > 0:
            sizes = [min(batch_size, left - i) for i in range(0, left, batch_size)][:STEPS_PER_LOOP]
            scalars, _ = train_loop(batches, tf.constant(len(sizes)))
            means.add({name: values.numpy() for name, values in scalars.items()}, sizes)
            left -= sum(sizes)
        snapshots.append(snapshot(model, optimizer, means.means()))
    step.update_eval_model()
    snapshots[-1]["evaluated"] = [v.numpy() for v in step.eval_model.variables]
    return snapshots


def compare(make_optimizer, examples, *, batch_size, epochs, seed=0, make_model=None):
    """Trains both ways.

    Args:
      make_optimizer: a constructor.
      examples: the training set, `data.Examples`.
      make_model: a constructor of a model to logits. Default: the network of the tutorials.

    Returns: a dict for each epoch, from the keys of `snapshot` to the largest difference. A NaN or another shape counts
      as infinite.
    """
    options = {"batch_size": batch_size, "epochs": epochs, "seed": seed}
    keras.utils.set_random_seed(seed)
    fit_model, loss = (make_model or make_sequential)(), "categorical_crossentropy"
    fit_optimizer = make_optimizer()
    if make_model:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        keras.utils.set_random_seed(seed)  # a new Dropout draws its seed
        model = make_model()
    else:
        model = CNN()
    model.set_weights(fit_model.get_weights())
    fitted = train_with_fit(fit_model, fit_optimizer, examples, loss=loss, **options)
    looped = train_with_loop(model, make_optimizer(), examples, **options)
    return [
        {key: max(difference(a, b) for a, b in zip(ours[key], theirs[key], strict=True)) for key in ours}
        for ours, theirs in zip(looped, fitted, strict=True)
    ]


def difference(a, b):
    """Returns the largest absolute difference of two arrays, 0.0 only if all bits are equal and none is NaN."""
    alike = a.shape == b.shape and a.dtype == b.dtype
    wide = [x.astype(np.float64) for x in (a, b)]
    if alike and a.tobytes() == b.tobytes() and not np.isnan(wide[0]).any():  # may be infinite: loss scales grow
        return 0.0
    if not alike or not np.isfinite(wide).all():
        return np.inf
    return max(float(np.abs(a - b).max()), np.finfo(np.float64).tiny)


class Comparison:
    """The flags of this script."""

    data_dir = Setting(None, "Folder with the data, the same flag as in mnist.train.", kind=local_path)
    dataset = Setting("auto", "Data set, the same flag as in mnist.train.", kind=data.NAMES)
    epochs = Setting(5, "Number of epochs.", low=1)
    batch_size = Setting(64, "Images per step.", low=1)
    optimizer = Setting("adam", "Optimizer to train with.", kind=(*make_optimizers(1), "all"))
    feature = Setting(None, "Feature of Keras to compare instead.", kind=(*make_features(), "all"))


def main(options):
    dataset = data.load(options.dataset, options.data_dir)
    if len(dataset.classes) != NUM_CLASSES:
        raise Error(f"{dataset.name} has {len(dataset.classes)} classes, the networks that are compared have ten.")
    train = dataset.train
    steps = steps_per_epoch(len(train.labels), options.batch_size)
    optimizers = make_optimizers(options.epochs * steps)
    cases = {name: (None, make_optimizer) for name, make_optimizer in optimizers.items()}
    chosen = options.optimizer
    if options.feature:
        cases, chosen = make_features(), options.feature
    equal = True
    for name in cases if chosen == "all" else [chosen]:
        print(f"{name}, batch size {options.batch_size}: largest differences from model.fit")
        print(f"{'step':>8}{'weights':>12}{'slots':>12}{'loss':>12}{'accuracy':>12}{'evaluated':>12}")
        make_model, make_optimizer = cases[name]
        sizes = {"batch_size": options.batch_size, "epochs": options.epochs}
        rows = compare(make_optimizer, train, make_model=make_model, **sizes)
        for epoch, row in enumerate(rows):
            print(f"{(epoch + 1) * steps:8d}" + "".join(f"{value:12.3g}" for value in row.values()), flush=True)
            equal &= not any(row.values())
    print("equal to the last bit" if equal else "NOT EQUAL")
    return 0 if equal else 1


if __name__ == "__main__":
    run(main, Comparison)
