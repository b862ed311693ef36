"""Checks that this loop gives the same bits as model.fit: python scripts/compare_with_fit.py

Trains the tutorial's Sequential model (softmax, one-hot labels, categorical_crossentropy) with
`model.fit`, and the CNN with this project's loop, from the same initial weights on the same batches.
After each epoch every weight, every optimizer slot and the epoch's loss and accuracy are compared, at the
end the weights that are evaluated. Exits with 0 only if all are equal to the last bit.

`--feature=all` does the same for what Keras' models, layers and optimizers bring that changes what `fit`
computes, a row of `make_features` each, on a small network.
"""

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
    """Constructors of the optimizers to compare, by name."""
    optimizers = keras.optimizers
    return {
        "adam": lambda: optimizers.Adam(),
        "adam_clipnorm": lambda: optimizers.Adam(global_clipnorm=1.0),
        "adam_cosine": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(2e-3, total_steps)),
        "sgd_momentum": lambda: optimizers.SGD(0.01, momentum=0.9),
    }


def make_sequential():
    """The network as the tutorials write it, with a softmax at its end."""
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
    """Adds losses as a layer may: a scalar, one for each image, and one only in training."""

    def call(self, x, training=False):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        self.add_loss(0.001 * keras.ops.sum(keras.ops.abs(x), axis=1))
        if training:
            self.add_loss(0.02 * keras.ops.max(x))
        return x


def make_small(*inner, dense=None, frozen=False):
    """A function that makes a small Sequential to logits; `inner` make layers before the last."""

    def make():
        layers = keras.layers
        first = layers.Conv2D(4, 5, strides=3, activation="relu", trainable=not frozen)
        last = layers.Dense(NUM_CLASSES, **(dense or {}))
        made = [make_layer() for make_layer in inner]
        return keras.Sequential([keras.Input(IMAGE_SHAPE), first, layers.Flatten(), *made, last])

    return make


class UnusedHead(keras.Model):
    """A model with a layer that has no part in its answers: its variables get no gradient."""

    def __init__(self):
        super().__init__()
        self.flatten, self.used, self.unused = keras.layers.Flatten(), *map(keras.layers.Dense, (NUM_CLASSES, 3))
        self.used.build([None, 784])
        self.unused.build([None, 784])
        self.built = True

    def call(self, images):
        return self.used(self.flatten(images))


class NoTraining(UnusedHead):
    """A call() without `training`: fit then leaves Dropout and BatchNormalization as in inference."""

    def __init__(self):
        super().__init__()
        self.dropout, self.norm = keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization()
        self.norm.build([None, 784])

    def call(self, images):
        return self.used(self.norm(self.dropout(self.flatten(images))))


class Centralized(keras.optimizers.SGD):
    """An optimizer with a way of its own to apply gradients: less their mean."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients((gradient - keras.ops.mean(gradient), v) for gradient, v in grads_and_vars)


def make_recurrent():
    """A small recurrent network: its dropout draws whenever it is called, in evaluations too."""
    layers = keras.layers
    rows = [keras.Input(IMAGE_SHAPE), layers.Reshape(IMAGE_SHAPE[:2])]
    return keras.Sequential([*rows, layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2), layers.Dense(NUM_CLASSES)])


def make_lora():
    """A small model, of whose last layer only a low-rank update is trained."""
    model = make_small()()
    model.layers[-1].enable_lora(2)
    return model


def make_features():
    """What is compared with --feature: a dict from names to constructors of a model and of an optimizer."""
    layers, optimizers, regularizers = keras.layers, keras.optimizers, keras.regularizers
    adam = optimizers.Adam
    schedules = optimizers.schedules
    plain = make_small()
    l2, l1 = regularizers.L2(0.1), regularizers.L1(0.01)
    return {
        "kernel_regularizer": (make_small(dense={"kernel_regularizer": l2, "bias_regularizer": l1}), adam),
        "activity_regularizer": (make_small(dense={"activity_regularizer": l2}), adam),
        "orthogonal_regularizer": (
            make_small(dense={"kernel_regularizer": regularizers.OrthogonalRegularizer(0.01, "columns")}),
            adam,
        ),
        "add_loss": (make_small(OwnLosses), adam),
        "add_loss_regularizer_dropout": (
            make_small(OwnLosses, lambda: layers.Dropout(0.3), dense={"kernel_regularizer": l2}),
            adam,
        ),
        "activity_layer": (make_small(lambda: layers.ActivityRegularization(0.01, 0.02)), adam),
        "constraint": (make_small(dense={"kernel_constraint": keras.constraints.MaxNorm(0.5)}), adam),
        "frozen": (make_small(frozen=True), adam),
        "batch_norm": (make_small(layers.BatchNormalization), adam),
        "frozen_batch_norm": (make_small(lambda: layers.BatchNormalization(trainable=False)), adam),
        "dropout": (make_small(lambda: layers.Dropout(0.4)), adam),
        "noise": (make_small(lambda: layers.GaussianNoise(0.1)), adam),
        "spectral_norm": (make_small(lambda: layers.SpectralNormalization(layers.Dense(16))), adam),
        "lora": (make_lora, adam),
        "bfloat16_logits": (make_small(dense={"dtype": "mixed_bfloat16"}), adam),
        "float16_logits": (make_small(dense={"dtype": "mixed_float16"}), adam),
        "float64_logits": (make_small(dense={"dtype": "float64"}), adam),
        "unused_head": (UnusedHead, lambda: optimizers.AdamW(weight_decay=0.1)),
        "no_training_argument": (NoTraining, adam),
        "recurrent_dropout": (make_recurrent, adam),
        "use_ema": (plain, lambda: adam(use_ema=True, ema_momentum=0.9)),
        "use_ema_batch_norm": (make_small(layers.BatchNormalization), lambda: optimizers.SGD(0.1, use_ema=True)),
        "ema_overwrite": (plain, lambda: adam(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)),
        "loss_scale_factor": (plain, lambda: adam(loss_scale_factor=1000.0)),
        "loss_scale_optimizer": (plain, lambda: optimizers.LossScaleOptimizer(adam(), dynamic_growth_steps=4)),
        "loss_scale_overflow": (plain, lambda: optimizers.LossScaleOptimizer(adam(), initial_scale=2.0**127)),
        "gradient_accumulation": (plain, lambda: adam(gradient_accumulation_steps=3)),
        "accumulation_clip_ema": (
            plain,
            lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2, global_clipnorm=0.1, use_ema=True),
        ),
        "clipnorm": (plain, lambda: adam(clipnorm=0.1)),
        "clipvalue": (plain, lambda: adam(clipvalue=0.01)),
        "weight_decay": (plain, lambda: adam(weight_decay=0.1)),
        "amsgrad": (plain, lambda: adam(amsgrad=True)),
        "schedule": (plain, lambda: optimizers.SGD(schedules.PiecewiseConstantDecay([5, 9], [0.1, 0.01, 0.2]))),
        "own_apply_gradients": (plain, lambda: Centralized(0.1)),
        "callable_rate": (plain, lambda: adam(lambda: 2e-3)),
        "together": (
            make_small(
                *(layers.BatchNormalization, OwnLosses, lambda: layers.Dropout(0.4)),
                *(lambda: layers.GaussianNoise(0.1), lambda: layers.ActivityRegularization(0.01, 0.02)),
                dense={
                    **{"kernel_regularizer": l2, "bias_regularizer": l1, "activity_regularizer": l2},
                    "kernel_constraint": keras.constraints.MaxNorm(0.5),
                },
            ),
            lambda: adam(weight_decay=0.1, amsgrad=True, clipvalue=0.01, use_ema=True, ema_overwrite_frequency=3),
        ),
        **{
            name: (plain, getattr(optimizers, name))
            for name in (
                *("Adadelta", "Adafactor", "Adagrad", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam"),
                *("RMSprop", "SGD"),
            )
        },
    }


def snapshot(model, optimizer, metrics):
    """What is compared, copied: float arrays of weights, of slots, and the epoch's metrics."""
    return {
        "weights": [v.numpy() for v in model.variables],
        "slots": [keras.ops.convert_to_numpy(v) for v in optimizer.variables],
        "loss": [np.float32(metrics["loss"])],
        "accuracy": [np.float32(metrics["accuracy"])],
    }


def train_with_fit(model, optimizer, examples, *, batch_size, epochs, seed, loss="categorical_crossentropy"):
    """Trains with compile and fit on NumPy's own x / 255.0. Returns: a snapshot of each epoch."""
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
    """Trains with this project's step and loop. Returns: a snapshot of each epoch."""
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
    """Trains both ways: the tutorial's network, or what `make_model` makes, a model to logits.

    Returns: for each epoch a dict from what is compared to its largest difference. A NaN or a difference in
      shape counts as infinite.
    """
    options = {"batch_size": batch_size, "epochs": epochs, "seed": seed}
    keras.utils.set_random_seed(seed)
    fit_model, loss = (make_model or make_sequential)(), "categorical_crossentropy"
    fit_optimizer = make_optimizer()
    if make_model:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        keras.utils.set_random_seed(seed)  # seeds of dropout are drawn when it is made
        model = make_model()
    else:
        model = CNN()
    model.set_weights(fit_model.get_weights())
    fitted = train_with_fit(fit_model, fit_optimizer, examples, loss=loss, **options)
    looped = train_with_loop(model, make_optimizer(), examples, **options)
    return [
        {key: max(_difference(a, b) for a, b in zip(ours[key], theirs[key], strict=True)) for key in ours}
        for ours, theirs in zip(looped, fitted, strict=True)
    ]


def _difference(a, b):
    alike = a.shape == b.shape and a.dtype == b.dtype
    wide = [x.astype(np.float64) for x in (a, b)]
    if alike and a.tobytes() == b.tobytes() and not np.isnan(wide[0]).any():  # infinite, too: a loss scale may grow so
        return 0.0
    if not alike or not np.isfinite(wide).all():
        return np.inf
    return max(float(np.abs(a - b).max()), np.finfo(np.float64).tiny)


class Comparison:
    """What is trained both ways."""

    data_dir = Setting(None, "Folder with the data, as of mnist.train.", kind=local_path)
    dataset = Setting("auto", "Data set, as of mnist.train.", kind=data.NAMES)
    epochs = Setting(5, "Passes over the training set.", low=1)
    batch_size = Setting(64, "Images per step.", low=1)
    optimizer = Setting("adam", "What to train with.", kind=(*make_optimizers(1), "all"))
    feature = Setting(None, "Compare this feature of Keras instead.", kind=(*make_features(), "all"))


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
