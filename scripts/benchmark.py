"""Compares this loop with `model.fit` and PyTorch: python scripts/benchmark.py --json=benchmark.json

Every contender trains the same network on the same data with batches of 64 and Adam at 1e-3, on two
cores, each in a process of its own, in turn (A B C A B C). An epoch that is not counted comes first.
No contender validates, saves or prints while the clock runs; PyTorch's keep no metrics either. Prints,
as Markdown:

- images/s: median, least and most over the repeats; their ratio to the first row; seconds per epoch;
  peak memory up to the end of training; seconds from the start of the process to the end of the first
  step (`fit_best`: the first 50, which it takes in one call); accuracy on the test set.
- whether `model.fit` and this loop, given the same weights and batches, end with the same bits.
- with --scaling: the cost of an image and the peak memory by the size of the data and by epochs.
- with --overheads: what evaluation, summaries, progress and checkpoints add to an epoch, and how long
  an evaluation takes by batch size, beside `model.evaluate`.

--notable and --nocheck leave out the first two. The rows are

  fit_numpy         model.fit on float64 arrays, as in tutorials; its progress bar is off
  fit_best          model.fit on tf.data in float32, gathered by index, 50 steps per execution
  loop_float32      this project's loop; loop_bfloat16, loop_xla: the same with one option
  loop_split        mnist.research.accumulate --slices=2 --intra_op_threads=1; loop_split_bfloat16: in bfloat16
  torch_dataloader  PyTorch with a DataLoader, as in its tutorials
  torch_resident    PyTorch on tensors in memory, channels last; torch_bfloat16: the same, autocast

What it printed last is in the README.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

# A contender's start-up is timed: TensorFlow, PyTorch and mnist are imported where they are used.

BATCH_SIZE = 64
STEPS_PER_LOOP = 100
CORES = 2
DATA_SIZES = (1, 4, 16)
EPOCHS = (1, 5, 20)
EVAL_BATCH_SIZES = (100, 500, 1000, 2500)  # 500 is the default


def define_flags():
    """For the parent alone: a contender may import mnist.train, which has flags of the same names."""
    flags.DEFINE_string("data_dir", None, "Folder with the data, as of mnist.train.")
    flags.DEFINE_integer("repeats", 5, "Processes for each contender.", lower_bound=1)
    flags.DEFINE_integer("epochs", 2, "Epochs that are timed in each process, after one that is not.", lower_bound=1)
    flags.DEFINE_list("rows", None, "Contenders to run, comma-separated; ratios are to the first. Default: all.")
    flags.DEFINE_bool("table", True, "Time the contenders.")
    flags.DEFINE_bool("check", True, "Compare the weights of model.fit and of this loop, bit by bit.")
    flags.DEFINE_bool("scaling", False, "Measure the cost of an image by the size of the data and by epochs.")
    flags.DEFINE_integer(
        "scaling_steps", 400, "Steps that are timed at each size of the data.", lower_bound=STEPS_PER_LOOP
    )
    flags.DEFINE_bool("overheads", False, "Measure what evaluation, summaries, progress and checkpoints cost.")
    flags.DEFINE_string("json", None, "File for all results.")


def timed(function, *args):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def since_spawn():
    """Seconds since the parent started this process."""
    return time.time() - float(os.environ["BENCHMARK_SPAWNED"])


def peak_mib():
    """The most memory that this process has held, in MiB."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        # Not ru_maxrss: on Linux it begins with what the parent held.
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def make_result(first_step, seconds, accuracy):
    """What a contender returns, at the end of training; `accuracy` is called when all is measured."""
    return {"first_step": first_step, "seconds": seconds, "peak_mib": peak_mib(), "accuracy": float(accuracy())}


# ---- model.fit


def make_sequential(**kwargs):
    """The network of TensorFlow's CNN tutorial as one writes it with Keras; `kwargs` go to compile()."""
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


def fit(model, epochs, arrays, *args, **kwargs):
    """Calls model.fit(*args) for one epoch and then those that count."""
    import keras

    first_step, starts, ends = [], [], []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: first_step or first_step.append(since_spawn()),
        on_epoch_begin=lambda epoch, logs: starts.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()),
    )
    model.fit(*args, epochs=1 + epochs, callbacks=[clock], verbose=0, **kwargs)
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    images, labels = arrays["test_images"] / 255.0, keras.utils.to_categorical(arrays["test_labels"], 10)
    return make_result(first_step[0], seconds[1:], lambda: model.evaluate(images, labels, verbose=0)[1])


def fit_numpy(arrays, epochs):
    import keras

    images = arrays["train_images"] / 255.0
    labels = keras.utils.to_categorical(arrays["train_labels"], 10)
    return fit(make_sequential(), epochs, arrays, images, labels, batch_size=BATCH_SIZE)


def fit_best(arrays, epochs):
    import keras
    import tensorflow as tf

    images = tf.constant(arrays["train_images"].astype(np.float32) / 255)
    labels = tf.constant(keras.utils.to_categorical(arrays["train_labels"], 10), tf.float32)

    def gather_batch(indices):
        return tf.gather(images, indices), tf.gather(labels, indices)

    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).batch(BATCH_SIZE)
    batches = indices.map(gather_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return fit(make_sequential(steps_per_execution=50, jit_compile=False), epochs, arrays, batches)


# ---- this project's loop


def make_examples(arrays, part):
    from mnist.data import Examples

    return Examples(arrays[f"{part}_images"], arrays[f"{part}_labels"])


def make_step(dtype="float32", slices=1):
    """Returns the plain step, or with `slices` of 2 the one that gives each half of a batch a core."""
    from mnist.model import CNN
    from mnist.research.accumulate import Accumulate
    from mnist.step import TrainStep

    import keras
    import tensorflow as tf

    if slices > 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model, optimizer = CNN(dtype=dtype), keras.optimizers.Adam(1e-3)
    return Accumulate(model, optimizer, slices=slices) if slices > 1 else TrainStep(model, optimizer)


def make_train(step, examples, *, jit_compile=False, start_step=0):
    """Returns `train(num_steps)`, which runs inner loops and fetches their scalars, as mnist.loop does."""
    from mnist import data
    from mnist.step import make_train_loop

    import tensorflow as tf

    batches = iter(data.train_batches(examples, BATCH_SIZE, seed=0, start_step=start_step))
    _, train_loop = make_train_loop(step, jit_compile=jit_compile)

    def train(num_steps):
        for done in range(0, num_steps, STEPS_PER_LOOP):
            scalars = train_loop(batches, tf.constant(min(STEPS_PER_LOOP, num_steps - done)))
            for values in scalars.values():
                values.numpy()

    return train


def count_steps(examples):
    return -(-len(examples.labels) // BATCH_SIZE)


def loop(arrays, epochs, dtype="float32", slices=1, jit_compile=False):
    from mnist.evaluate import compute_metrics, make_predict_logits

    examples, test = make_examples(arrays, "train"), make_examples(arrays, "test")
    step = make_step(dtype, slices)
    train = make_train(step, examples, jit_compile=jit_compile)
    train(1)
    first_step = since_spawn()
    train(count_steps(examples) - 1)
    seconds = [timed(train, count_steps(examples)) for _ in range(epochs)]
    predict_logits = make_predict_logits(step.model)
    return make_result(
        first_step, seconds, lambda: compute_metrics(predict_logits(test.images), test.labels)["accuracy"]
    )


# ---- PyTorch


def torch_loop(arrays, epochs, resident=True, bfloat16=False):
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
        images = torch.from_numpy(arrays[f"{part}_images"]).permute(0, 3, 1, 2).float() / 255
        return images.contiguous(memory_format=layout), torch.from_numpy(arrays[f"{part}_labels"]).long()

    images, labels = make_tensors("train")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=BATCH_SIZE, shuffle=True
    )

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


ROWS = {
    "fit_numpy": fit_numpy,
    "fit_best": fit_best,
    "loop_float32": loop,
    "loop_bfloat16": functools.partial(loop, dtype="mixed_bfloat16"),
    "loop_split": functools.partial(loop, slices=2),
    "loop_split_bfloat16": functools.partial(loop, dtype="mixed_bfloat16", slices=2),
    "loop_xla": functools.partial(loop, jit_compile=True),
    "torch_dataloader": functools.partial(torch_loop, resident=False),
    "torch_resident": torch_loop,
    "torch_bfloat16": functools.partial(torch_loop, bfloat16=True),
}


# ---- what else a process of its own measures


def check(arrays, steps=200):
    """Trains both from the same weights on the same batches, across the short last batch of an epoch."""
    from mnist import data

    import keras

    examples = make_examples(arrays, "train")
    start_step = max(count_steps(examples) - steps // 2, 0)
    step, model = make_step(), make_sequential(jit_compile=False)
    model.set_weights(step.model.get_weights())
    batches = data.train_batches(examples, BATCH_SIZE, seed=0, start_step=start_step).take(steps)
    batches = [(x / 255.0, keras.utils.to_categorical(y, 10)) for x, y in batches.as_numpy_iterator()]
    # fit() makes float32 of these images, as it does of whole arrays.
    methods = {"__len__": lambda _: steps, "__getitem__": lambda _, i: batches[i]}
    model.fit(type("Batches", (keras.utils.PyDataset,), methods)(), shuffle=False, verbose=0)
    make_train(step, examples, start_step=start_step)(steps)
    pairs = list(zip(model.get_weights(), step.model.get_weights(), strict=True))
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    equal = all(np.array_equal(a, b) for a, b in pairs)
    return {"steps": steps, "weights": sum(a.size for a, _ in pairs), "equal": equal, "difference": difference}


def scale(arrays, times, steps):
    """The cost of an image with the training set `times` over."""
    from mnist.data import Examples, epoch_order

    examples = Examples(*(np.concatenate([array] * times) for array in make_examples(arrays, "train")))
    num_examples = len(examples.labels)
    train = make_train(make_step(), examples)
    train(STEPS_PER_LOOP)
    loops = [timed(train, STEPS_PER_LOOP) for _ in range(steps // STEPS_PER_LOOP)]
    # Once an epoch, so that a few steps would show all of it or nothing.
    orders = [timed(lambda epoch: epoch_order(num_examples, 0, epoch).numpy(), epoch) for epoch in range(6)]
    order_seconds = statistics.median(orders[1:])
    image_seconds = statistics.median(loops) / STEPS_PER_LOOP * count_steps(examples) / num_examples
    return {
        "images": num_examples,
        "image_seconds": image_seconds + order_seconds / num_examples,
        "order_seconds": order_seconds,
        "data_mib": sum(array.nbytes for array in examples) / 2**20,
        "peak_mib": peak_mib(),
    }


class Stopwatch:
    """Given as `interrupt` to train_and_evaluate, which looks at `signum` between inner loops."""

    def __init__(self):
        self.times = []

    @property
    def signum(self):
        self.times.append(time.perf_counter())


def overheads(arrays, repeats):
    """Times an epoch of train_and_evaluate and the bare loop in turn; then evaluations in turn."""
    from mnist.data import Dataset
    from mnist.evaluate import compute_metrics, make_predict_logits
    from mnist.loop import train_and_evaluate

    import keras

    examples, test = make_examples(arrays, "train"), make_examples(arrays, "test")
    dataset = Dataset("benchmark", None, examples, test, test)
    num_steps = count_steps(examples)
    num_loops = -(-num_steps // STEPS_PER_LOOP)
    step = make_step()
    train = make_train(step, examples)
    train(num_steps)
    bare, whole = [], []
    for _ in range(repeats):
        bare.append(timed(train, num_steps))
        stopwatch = Stopwatch()
        with tempfile.TemporaryDirectory() as workdir:
            train_and_evaluate(make_step(), dataset, workdir, epochs=3, interrupt=stopwatch)
        # From the end of one epoch's steps to the next: all that is traced only once is over by then.
        whole.append(stopwatch.times[-1] - stopwatch.times[-1 - num_loops])

    def ours(batch_size):
        predict_logits = make_predict_logits(step.model, batch_size)
        return lambda: compute_metrics(predict_logits(test.images), test.labels)

    images, labels = test.images.astype(np.float32) / 255, keras.utils.to_categorical(test.labels, 10)
    evaluate = functools.partial(make_sequential().evaluate, images, labels, verbose=0)
    contenders = {
        "model.evaluate 32": evaluate,
        "model.evaluate 500": functools.partial(evaluate, batch_size=500),
        **{f"make_predict_logits {size}": ours(size) for size in EVAL_BATCH_SIZES},
    }
    seconds = {name: [] for name in contenders}
    for _ in range(1 + repeats):
        for name, contender in contenders.items():
            seconds[name].append(timed(contender))
    return {"bare": bare, "whole": whole, "evaluation": {name: values[1:] for name, values in seconds.items()}}


CONTENDERS = ROWS | {"check": check, "scale": scale, "overheads": overheads}


# ---- the parent


def run_contender(name, path, **options):
    """Runs a contender in a process of its own. Returns: what it returns."""
    from mnist import Error

    command = [sys.executable, os.path.abspath(__file__), f"--contender={name}", path, json.dumps(options)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "BENCHMARK_SPAWNED": str(time.time())}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise Error(f"{name} failed:\n{child.stderr[-3000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def contend(argument, path, options):
    with np.load(path) as file:
        arrays = dict(file)
    print(json.dumps(CONTENDERS[argument.removeprefix("--contender=")](arrays, **json.loads(options))))


def spread(values, digits):
    """Median, least and most, as text."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def run_table(path, num_images, rows, repeats, epochs):
    results = {name: [] for name in rows}
    for repeat, name in itertools.product(range(repeats), rows):
        print(f"repeat {repeat + 1}/{repeats}: {name}", file=sys.stderr)
        results[name].append(run_contender(name, path, epochs=epochs))
    print("| | images/s | ratio | s/epoch | peak MiB | first step, s | test accuracy |")
    print("|---|---|---|---|---|---|---|")
    rates = {name: [num_images * epochs / sum(r["seconds"]) for r in runs] for name, runs in results.items()}
    base = statistics.median(rates[rows[0]])
    for name, runs in results.items():
        rate = statistics.median(rates[name])
        peak, first, accuracy = (statistics.median(r[k] for r in runs) for k in ("peak_mib", "first_step", "accuracy"))
        print(
            f"| {name} | {spread(rates[name], 0)} | {rate / base:.2f} | {num_images / rate:.2f} "
            f"| {peak:,.0f} | {first:.1f} | {accuracy:.2%} |"
        )
    return results


def run_check(path):
    result = run_contender("check", path)
    verdict = "equal to the last bit" if result["equal"] else f"apart by up to {result['difference']:.1e}"
    print(f"\n{result['weights']:,} weights after {result['steps']} steps of model.fit and of this loop: {verdict}")
    return result


def run_scaling(path, num_images, steps):
    print("\n| training set | µs/image | of it the order | data MiB | peak MiB |\n|---|---|---|---|---|")
    sizes, runs = [], []
    for times in DATA_SIZES:
        sizes.append(size := run_contender("scale", path, times=times, steps=steps))
        image, order = size["image_seconds"], size["order_seconds"] / size["images"]
        memory = f"{size['data_mib']:,.0f} | {size['peak_mib']:,.0f}"
        print(f"| {times}x, {size['images']:,} images | {image * 1e6:.1f} | {order * 1e6:.2f} | {memory} |")
    print("\n| epochs | µs/image | peak MiB |\n|---|---|---|")
    for epochs in EPOCHS:
        runs.append(run := run_contender("loop_float32", path, epochs=epochs))
        print(f"| {epochs} | {sum(run['seconds']) / epochs / num_images * 1e6:.1f} | {run['peak_mib']:,.0f} |")
    return {"sizes": sizes, "epochs": runs}


def run_overheads(path, repeats):
    result = run_contender("overheads", path, repeats=repeats)
    evaluation = result["evaluation"]
    bare, evaluated = (statistics.median(s) for s in (result["bare"], evaluation["make_predict_logits 500"]))
    shares = [whole / bare - 1 for whole, bare in zip(result["whole"], result["bare"], strict=True)]
    print(f"\nAn epoch of the bare loop: {spread(result['bare'], 2)} s")
    print(f"Evaluation, summaries, progress and a checkpoint add, in %: {spread([100 * s for s in shares], 1)}")
    print(f"of it the evaluation alone, in %: {100 * evaluated / bare:.1f}")
    print("\n| evaluation, batch size | s | speed, ratio |\n|---|---|---|")
    base = statistics.median(next(iter(evaluation.values())))
    for name, seconds in evaluation.items():
        print(f"| {name} | {spread(seconds, 3)} | {base / statistics.median(seconds):.2f} |")
    return result


def main():
    from mnist import Error, data

    sys.stdout.reconfigure(line_buffering=True)  # into a log, too, each row as it comes
    flag = flags.FLAGS
    rows = flag.rows or list(ROWS)
    if unknown := [name for name in rows if name not in ROWS]:
        raise Error(f"--rows has {unknown[0]!r}, expected some of {', '.join(ROWS)}.")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed: its rows are left out.")
        rows = [name for name in rows if not name.startswith("torch")]
    dataset = data.load("auto", flag.data_dir)
    num_images = len(dataset.train.labels)
    packages = {name for name in ("tensorflow", "keras", "torch", "numpy") if importlib.util.find_spec(name)}
    versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
    results = {"dataset": dataset.name, "images": num_images, "epochs": flag.epochs, "versions": versions}
    print(f"{dataset.name}: {num_images:,} training images; {flag.repeats} repeats of {flag.epochs} epochs; ", end="")
    print(", ".join(" ".join(item) for item in versions.items()), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data.npz")
        parts = {"train": dataset.train, "test": dataset.test}
        np.savez(path, **{f"{p}_{k}": v for p, examples in parts.items() for k, v in examples._asdict().items()})
        if flag.table and rows:
            results["rows"] = run_table(path, num_images, rows, flag.repeats, flag.epochs)
        if flag.check:
            results["check"] = run_check(path)
        if flag.scaling:
            results["scaling"] = run_scaling(path, num_images, flag.scaling_steps)
        if flag.overheads:
            results["overheads"] = run_overheads(path, flag.repeats)
    if flag.json:
        with open(flag.json, "w") as file:
            json.dump(results, file, indent=2)
    return 0 if results.get("check", {}).get("equal", True) else 1


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--contender="):
        contend(*sys.argv[1:])
    else:
        from mnist import run

        define_flags()
        run(main)
