"""Checks that this loop gives the same bits as model.fit: python scripts/compare_with_fit.py

Trains the tutorial's Sequential model (softmax, one-hot labels, categorical_crossentropy) with
`model.fit`, and the CNN with this project's loop, from the same initial weights on the same batches.
After each epoch every weight, every optimizer slot and the epoch's loss and accuracy are compared.
Exits with 0 only if all are equal to the last bit.
"""

from mnist import data
from mnist.batches import train_batches
from mnist.command import run
from mnist.metrics import RunningMeans
from mnist.model import CNN, IMAGE_SHAPE
from mnist.plan import steps_per_epoch
from mnist.readers import NUM_CLASSES
from mnist.settings import Setting
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


def snapshot(model, optimizer, metrics):
    """What is compared, copied: float arrays of weights, of slots, and the epoch's metrics."""
    return {
        "weights": [v.numpy() for v in model.variables],
        "slots": [keras.ops.convert_to_numpy(v) for v in optimizer.variables],
        "loss": [np.float32(metrics["loss"])],
        "accuracy": [np.float32(metrics["accuracy"])],
    }


def train_with_fit(model, optimizer, examples, *, batch_size, epochs, seed):
    """Trains with compile and fit on NumPy's own x / 255.0. Returns: a snapshot of each epoch."""
    grey_levels = tf.constant((np.arange(256) / 255.0).astype(np.float32))
    batches = train_batches(examples, batch_size, seed=seed)
    batches = batches.map(lambda i, y: (tf.gather(grey_levels, tf.cast(i, tf.int32)), tf.one_hot(y, NUM_CLASSES)))
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    snapshots = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: snapshots.append(snapshot(model, optimizer, logs))
    )
    steps = steps_per_epoch(len(examples.labels), batch_size)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, callbacks=[record], verbose=0)
    return snapshots


def train_with_loop(model, optimizer, examples, *, batch_size, epochs, seed):
    """Trains with this project's step and loop. Returns: a snapshot of each epoch."""
    num_examples = len(examples.labels)
    batches = iter(train_batches(examples, batch_size, seed=seed))
    _, train_loop = make_train_loop(TrainStep(model, optimizer, seed=seed))
    snapshots = []
    for _ in range(epochs):
        means, left = RunningMeans(), num_examples
        while left > 0:
            sizes = [min(batch_size, left - i) for i in range(0, left, batch_size)][:STEPS_PER_LOOP]
            scalars = train_loop(batches, tf.constant(len(sizes)))
            means.add({name: values.numpy() for name, values in scalars.items()}, sizes)
            left -= sum(sizes)
        snapshots.append(snapshot(model, optimizer, means.means()))
    return snapshots


def compare(make_optimizer, examples, *, batch_size, epochs, seed=0):
    """Trains both ways. Returns: for each epoch a dict from what is compared to its largest difference.

    A NaN or a difference in shape counts as infinite.
    """
    keras.utils.set_random_seed(seed)
    sequential, cnn = make_sequential(), CNN()
    cnn.set_weights(sequential.get_weights())
    options = {"batch_size": batch_size, "epochs": epochs, "seed": seed}
    fitted = train_with_fit(sequential, make_optimizer(), examples, **options)
    looped = train_with_loop(cnn, make_optimizer(), examples, **options)
    return [
        {key: max(_difference(a, b) for a, b in zip(ours[key], theirs[key], strict=True)) for key in ours}
        for ours, theirs in zip(looped, fitted, strict=True)
    ]


def _difference(a, b):
    if a.shape != b.shape or a.dtype != b.dtype or not all(np.isfinite(x.astype(np.float64)).all() for x in (a, b)):
        return np.inf
    return 0.0 if a.tobytes() == b.tobytes() else max(float(np.abs(a - b).max()), np.finfo(np.float64).tiny)


class Comparison:
    """What is trained both ways."""

    data_dir = Setting(None, "Folder with the data, as of mnist.train.", kind=str)
    dataset = Setting("auto", "Data set, as of mnist.train.", kind=data.NAMES)
    epochs = Setting(5, "Passes over the training set.", low=1)
    batch_size = Setting(64, "Images per step.", low=1)
    optimizer = Setting("adam", "What to train with.", kind=(*make_optimizers(1), "all"))


def main(options):
    train = data.load(options.dataset, options.data_dir).train
    steps = steps_per_epoch(len(train.labels), options.batch_size)
    optimizers = make_optimizers(options.epochs * steps)
    names = list(optimizers) if options.optimizer == "all" else [options.optimizer]
    equal = True
    for name in names:
        print(f"{name}, batch size {options.batch_size}: largest differences from model.fit")
        print(f"{'step':>8}{'weights':>12}{'slots':>12}{'loss':>12}{'accuracy':>12}")
        rows = compare(optimizers[name], train, batch_size=options.batch_size, epochs=options.epochs)
        for epoch, row in enumerate(rows):
            print(f"{(epoch + 1) * steps:8d}" + "".join(f"{value:12.3g}" for value in row.values()), flush=True)
            equal &= not any(row.values())
    print("equal to the last bit" if equal else "NOT EQUAL")
    return 0 if equal else 1


if __name__ == "__main__":
    run(main, Comparison)
