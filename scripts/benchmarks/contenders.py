"""Runs one contender of benchmark.py in its own process: python scripts/benchmarks/contenders.py NAME FOLDER OPTIONS

FOLDER holds a data set as `write` writes it. OPTIONS are keyword arguments in JSON. Prints a line of JSON.
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import sys
import tempfile
import time

import numpy as np

# The start-up of a contender counts: each function imports TensorFlow, PyTorch and mnist itself.

BATCH_SIZE = 64
CORES = 2


def timed(function, *args):
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def since_spawn(now=None):
    """Returns the seconds from the start of this process to `now`, in seconds since 1970. Default: the present."""
    return (now or time.time()) - float(os.environ["BENCHMARK_SPAWNED"])


def make_result(first_step, seconds, accuracy):
    """Returns the result of a contender at the end of its training. Calls `accuracy` after the memory is measured.

    Args:
      first_step: seconds from the start of the process to the end of the first step.
      seconds: a list. The seconds of training in each timed epoch.
      accuracy: a function that returns the accuracy on the test set.
    """
    with open("/proc/self/status") as status:  # ru_maxrss would begin with the memory of the parent
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    return {"first_step": first_step, "seconds": seconds, "peak_mib": peak, "accuracy": float(accuracy())}


def load(data_dir):
    """Loads the data set of all contenders. Raises: `mnist.Error` unless it has ten classes."""
    from mnist import Error, data

    dataset = data.load("auto", data_dir)
    if len(dataset.classes) != 10:
        raise Error(f"{dataset.name} has {len(dataset.classes)} classes, the networks that are compared have ten.")
    return dataset


def write(folder, dataset):
    """Writes a `data.Dataset` as Keras publishes MNIST."""
    (x_train, y_train), (x_test, y_test) = dataset.train, dataset.test
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(os.path.join(folder, "mnist.npz"), **arrays)


def read(folder, part):
    """Reads the images and the labels of "train" or "test" without mnist."""
    with np.load(os.path.join(folder, "mnist.npz")) as arrays:
        return arrays[f"x_{part}"], arrays[f"y_{part}"]


def read_as_tutorial(folder, part):
    """Reads a part as the tutorials do. Returns: float64 images in [0, 1], one-hot labels."""
    import keras

    images, labels = read(folder, part)
    return images / 255.0, keras.utils.to_categorical(labels, 10)


def make_sequential(**kwargs):
    """Returns the network of TensorFlow's CNN tutorial, compiled with `kwargs`."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], **kwargs)
    return model


def fit(model, epochs, folder, *args, **kwargs):
    """Calls model.fit(*args) for one epoch that does not count, and for `epochs` more."""
    import keras

    first_step, starts, ends = [], [], []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: first_step or first_step.append(since_spawn()),
        on_epoch_begin=lambda epoch, logs: starts.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()),
    )
    history = model.fit(*args, epochs=1 + epochs, callbacks=[clock], verbose=0, **kwargs).history
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]

    def accuracy():
        if "val_accuracy" in history:
            return history["val_accuracy"][-1]
        return model.evaluate(*read_as_tutorial(folder, "test"), verbose=0)[1]

    return make_result(first_step[0], seconds[1:], accuracy)


def fit_numpy(folder, epochs):
    return fit(make_sequential(), epochs, folder, *read_as_tutorial(folder, "train"), batch_size=BATCH_SIZE)


def fit_process(folder):
    """Runs the tutorial from start to end: one epoch, validated on the test set."""
    train, tests = read_as_tutorial(folder, "train"), read_as_tutorial(folder, "test")
    return fit(make_sequential(), 0, folder, *train, batch_size=BATCH_SIZE, validation_data=tests)


def fit_best(folder, epochs):
    import keras
    import tensorflow as tf

    images, labels = read(folder, "train")
    images = tf.constant(images.astype(np.float32) / 255)
    labels = tf.constant(keras.utils.to_categorical(labels, 10), tf.float32)

    def gather_batch(indices):
        return tf.gather(images, indices), tf.gather(labels, indices)

    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).batch(BATCH_SIZE)
    batches = indices.map(gather_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return fit(make_sequential(steps_per_execution=50, jit_compile=False), epochs, folder, batches)


def fit_epochs(folder, epochs, seed):
    """Runs `fit_numpy` with a seed. Returns: the seconds and the test accuracy of each epoch."""
    import keras

    keras.utils.set_random_seed(seed)
    images, labels = read_as_tutorial(folder, "train")
    model, tests = make_sequential(), read_as_tutorial(folder, "test")
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    model.fit(images[:BATCH_SIZE], labels[:BATCH_SIZE], batch_size=BATCH_SIZE, verbose=0)  # traces, untimed
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    result = {"seconds": [], "accuracies": []}
    for _ in range(epochs):
        result["seconds"].append(timed(lambda: model.fit(images, labels, batch_size=BATCH_SIZE, verbose=0)))
        result["accuracies"].append(model.evaluate(*tests, batch_size=500, verbose=0)[1])
    return result


def loop(folder, epochs=0, flags=(), variant=None):
    """Runs mnist.train, or mnist.research.<variant>, for one epoch that does not count and `epochs` more."""
    from mnist import train
    from mnist.step import TrainStep

    import tensorflow as tf

    base = getattr(importlib.import_module(f"mnist.research.{variant}"), variant.capitalize()) if variant else TrainStep
    steps = []

    class Clocked(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.first_step = tf.Variable(0.0, dtype=tf.float64)
            steps.append(self)

        def __call__(self, images, labels):
            scalars = super().__call__(images, labels)
            self.first_step.assign(tf.where(self.first_step > 0, self.first_step, tf.timestamp()))
            return scalars

    with tempfile.TemporaryDirectory() as workdir:
        sys.argv = ["mnist.train", f"--data_dir={folder}", f"--epochs={1 + epochs}", f"--workdir={workdir}", *flags]
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            train.launch(Clocked)
        with open(os.path.join(workdir, "metrics.jsonl")) as file:
            ends = [json.loads(line)["seconds"] for line in file]  # of training, after 0, 1, 2... epochs
        with open(os.path.join(workdir, "results.json")) as file:
            accuracy = json.load(file)["test_accuracy"]
    first_step = since_spawn(float(steps[0].first_step))
    return make_result(first_step, np.diff(ends[1:]).tolist(), lambda: accuracy)


def torch_loop(folder, epochs, resident=True, bfloat16=False):
    import torch
    from torch import nn

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    layout = torch.channels_last if resident else torch.contiguous_format
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)),
    ).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    cross_entropy = nn.CrossEntropyLoss()

    def make_tensors(part):
        images, labels = (torch.from_numpy(array) for array in read(folder, part))
        images = images.permute(0, 3, 1, 2).float() / 255
        return images.contiguous(memory_format=layout), labels.long()

    images, labels = make_tensors("train")
    examples = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(examples, batch_size=BATCH_SIZE, shuffle=True)

    def epoch_batches():
        if not resident:
            return loader
        return ((images[indices], labels[indices]) for indices in torch.randperm(len(labels)).split(BATCH_SIZE))

    def train(batches):
        for batch_images, batch_labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = cross_entropy(model(batch_images), batch_labels)
            loss.backward()
            optimizer.step()

    train(itertools.islice(epoch_batches(), 1))
    first_step = since_spawn()
    train(itertools.islice(epoch_batches(), 1, None))
    seconds = [timed(lambda: train(epoch_batches())) for _ in range(epochs)]

    def accuracy():
        with torch.inference_mode():
            test_images, test_labels = make_tensors("test")
            return (model(test_images).argmax(1) == test_labels).float().mean()

    return make_result(first_step, seconds, accuracy)


def autotune(folder, lives, repeats):
    """Times what dropping a tf.data iterator takes, on one core, with tf.data's autotune and without.

    Args:
      lives: a list of floats. How long an iterator is read before it is dropped, in seconds.
      repeats: how often.

    Returns: for each of `lives` two lists of seconds, with autotune and without.
    """
    import tensorflow as tf

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    images, labels = map(tf.constant, read(folder, "train"))
    indices = tf.data.Dataset.range(len(labels)).repeat().batch(BATCH_SIZE)
    batches = indices.map(lambda i: (tf.gather(images, i), tf.gather(labels, i))).prefetch(8)

    def seconds_to_drop(life, enabled):
        options = tf.data.Options()
        options.autotune.enabled = enabled
        iterators, end = [iter(batches.with_options(options))], time.perf_counter() + life
        while time.perf_counter() < end:
            next(iterators[0])
        return timed(iterators.clear)

    return [[[seconds_to_drop(life, on) for _ in range(repeats)] for on in (True, False)] for life in lives]


ROWS = {
    "fit_numpy": fit_numpy,
    "fit_best": fit_best,
    "loop_float32": loop,
    "loop_bfloat16": functools.partial(loop, flags=["--precision=bfloat16"]),
    "loop_split": functools.partial(loop, flags=["--slices=2"]),
    "loop_split_bfloat16": functools.partial(loop, flags=["--slices=2", "--precision=bfloat16"]),
    "loop_winograd": functools.partial(loop, variant="winograd", flags=["--slices=2"]),
    "loop_winograd_bfloat16": functools.partial(loop, variant="winograd", flags=["--slices=2", "--precision=bfloat16"]),
    "loop_augment": functools.partial(loop, variant="augment"),
    "loop_xla": functools.partial(loop, flags=["--jit_compile"]),
    "torch_dataloader": functools.partial(torch_loop, resident=False),
    "torch_resident": torch_loop,
    "torch_bfloat16": functools.partial(torch_loop, bfloat16=True),
}
OTHERS = {"fit_process": fit_process, "train_process": loop, "fit_epochs": fit_epochs, "autotune": autotune}


if __name__ == "__main__":
    name, folder, options = sys.argv[1:]
    print(json.dumps((ROWS | OTHERS)[name](folder, **json.loads(options))))
