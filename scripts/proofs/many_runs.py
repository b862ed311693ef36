"""Shows that many runs in one process leave nothing behind: python scripts/proofs/many_runs.py

Calls `train_and_evaluate` again and again, each time with a new step and a new folder, and with other settings. A line
for every ten runs has the memory, the open files and the threads of the process, and the steps that are still alive.
The first kind of run must have the bits that it has in a process of its own, every time. A loop of Keras and TensorFlow
alone then shows its own growth, because TensorFlow keeps a graph for each model (tensorflow/tensorflow#97697).
"""

import contextlib
import ctypes
import gc
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import weakref

from mnist import Error, checkpoint, data
from mnist.cli import run as run_command
from mnist.data import Dataset, Examples
from mnist.loop import train_and_evaluate
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import tensorflow as tf

# Settings of the runs, which take turns: the optimizer, the seed, the dtype policy, and options of the run. XLA is not
# among them, because it keeps all that it has compiled (tensorflow/tensorflow#64170).
KINDS = (
    ("Adam", 0, "float32", {}),
    ("SGD", 1, "float32", {"batch_size": 7}),
    ("Adam", 2, "mixed_bfloat16", {}),
    ("RMSprop", 3, "float32", {"slices": 2}),
    ("Lamb", 4, "float32", {"norms_every": 0}),
)


def make_model(policy):
    """Makes a small network of convolution, pooling and dropout, whose layers compute in a dtype policy."""
    layers = keras.layers
    inner = [layers.Conv2D(8, 5, strides=2, activation="relu", dtype=policy), layers.MaxPooling2D(dtype=policy)]
    inner += [layers.Flatten(dtype=policy), layers.Dropout(0.3, seed=0, dtype=policy), layers.Dense(10, dtype=policy)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner, layers.Activation("linear", dtype="float32")])


def train(kind, dataset):
    """Trains one run of `KINDS`. Returns: a digest of its weights and its results, and a weak reference to its step."""
    optimizer, seed, policy, options = kind
    options = {"batch_size": 16, "epochs": 2, "norms_every": 3} | options
    keras.utils.set_random_seed(seed)
    slices = options.pop("slices", 1)
    step = TrainStep(make_model(policy), getattr(keras.optimizers, optimizer)(1e-3), seed=seed, slices=slices)
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        results = train_and_evaluate(step, dataset, workdir, **options)
    arrays = [variable.numpy().tobytes() for _, variable in sorted(checkpoint.variables_of(step).items())]
    numbers = [repr(results[name]).encode() for name in ("train_loss", "validation_loss", "test_accuracy")]
    return hashlib.sha256(b"".join(arrays + numbers)).hexdigest(), weakref.ref(step)


def train_plainly(dataset):
    """Trains a model with Keras and TensorFlow alone, as a run of the first kind does."""
    images, labels = dataset.train
    model, optimizer = make_model("float32"), keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images / 255, training=True))
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    for batch in tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels.astype("int32"))).batch(16):
        train_step(*batch)


def measure():
    """Returns the memory of this process in MiB, the number of its open files, and the number of its threads."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns what is free, which else varies by 100 MiB
    with open("/proc/self/status", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


class ManyRuns:
    """The flags of this script."""

    runs = Setting(100, "Number of runs in this process.", low=20)
    most = Setting(20.0, "Largest growth of the memory after the tenth run, in MiB.", low=0.0)
    one = Setting(False, "Print the digest of one run alone.")


def main(options):
    digits = data.load("digits")
    train_part, test_part = (
        Examples(*(array[:n] for array in part)) for part, n in ((digits.train, 96), (digits.test, 32))
    )
    dataset = Dataset("digits", None, train_part, test_part, test_part, digits.classes)
    if options.one:
        print(train(KINDS[0], dataset)[0])
        return 0
    alone = subprocess.run([sys.executable, __file__, "--one"], capture_output=True, text=True, check=True)
    expected, steps, faults, first = alone.stdout.split()[-1], [], [], None
    for number in range(options.runs):
        kind = KINDS[number % len(KINDS)]
        digest, step = train(kind, dataset)
        steps.append(step)
        if kind is KINDS[0] and digest != expected:
            faults.append(f"run {number + 1} has other bits than a run in a process of its own")
        if number % 10 == 9:
            memory, files, threads = measure()
            first = first or (memory, files, threads)
            alive = sum(step() is not None for step in steps)
            print(f"run {number + 1}: {memory:.0f} MiB, {files} files, {threads} threads, {alive} steps", flush=True)
    growth, before = memory - first[0], memory
    for _ in range(options.runs - 10):
        train_plainly(dataset)
    plain = measure()[0] - before
    print(f"growth after the tenth run: {growth:.0f} MiB; of Keras and TensorFlow alone: {plain:.0f} MiB")
    if growth > options.most:
        faults.append("the memory grows")
    if files > first[1] or threads > first[2]:
        faults.append("open files or threads are left")
    if alive:
        faults.append(f"{alive} steps are still alive")
    if faults:
        raise Error("; ".join(faults))
    print("many_runs: all passed")
    return 0


if __name__ == "__main__":
    run_command(main, ManyRuns)
