"""What scripts/benchmark.py runs, each in a process of its own: python scripts/contenders.py NAME FOLDER OPTIONS

FOLDER holds a data set as `write_idx` writes it, OPTIONS are keyword arguments as JSON. Prints a line of JSON.
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time

import numpy as np

# A contender's start-up is timed: TensorFlow, PyTorch and mnist are imported where they are used.

BATCH_SIZE = 64
STEPS_PER_LOOP = 100
SCALING_STEPS = 400  # that are timed at each size of the data
CORES = 2
EVAL_BATCH_SIZES = (100, 500, 1000, 2500)  # 500 is the default


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


def load(data_dir):
    """The data set that contenders are compared on. Raises: `mnist.Error` if it has other than their ten classes."""
    from mnist import Error, data

    dataset = data.load("auto", data_dir)
    if len(dataset.classes) != 10:
        raise Error(f"{dataset.name} has {len(dataset.classes)} classes, the networks that are compared have ten.")
    return dataset


def write_idx(folder, dataset, times=1):
    """Writes a data set as IDX files, the training set `times` over."""
    for part, examples, repeats in (("train", dataset.train, times), ("t10k", dataset.test, 1)):
        for kind, array in (("images-idx3", examples.images[..., 0]), ("labels-idx1", examples.labels)):
            shape = np.array([len(array) * repeats, *array.shape[1:]], ">u4")
            with open(os.path.join(folder, f"{part}-{kind}-ubyte"), "wb") as file:
                file.write(bytes([0, 0, 8, array.ndim]) + shape.tobytes())
                for _ in range(repeats):
                    array.tofile(file)


def read_idx(folder, part):
    """Reads what `write_idx` wrote, for contenders that do without mnist. Returns: images, labels."""
    images = np.fromfile(os.path.join(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=16)
    return images.reshape(-1, 28, 28, 1), np.fromfile(
        os.path.join(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=8
    )


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


def fit(model, epochs, folder, *args, **kwargs):
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

    def accuracy():
        images, labels = read_idx(folder, "t10k")
        return model.evaluate(images / 255.0, keras.utils.to_categorical(labels, 10), verbose=0)[1]

    return make_result(first_step[0], seconds[1:], accuracy)


def fit_numpy(folder, epochs):
    import keras

    images, labels = read_idx(folder, "train")
    images, labels = images / 255.0, keras.utils.to_categorical(labels, 10)
    return fit(make_sequential(), epochs, folder, images, labels, batch_size=BATCH_SIZE)


def fit_process(folder):
    """The tutorial from start to end: one epoch, validated on the test set."""
    import keras

    (images, labels), (test_images, test_labels) = (read_idx(folder, part) for part in ("train", "t10k"))
    images, test_images = images / 255.0, test_images / 255.0
    labels, test_labels = (keras.utils.to_categorical(part, 10) for part in (labels, test_labels))
    first_step = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: first_step or first_step.append(since_spawn())
    )
    model, tests = make_sequential(), (test_images, test_labels)
    history = model.fit(images, labels, BATCH_SIZE, validation_data=tests, callbacks=[clock], verbose=0).history
    return make_result(first_step[0], [], lambda: history["val_accuracy"][-1])


def train_process(folder):
    """The command of this project from start to end: one epoch, evaluated, drawn and saved as ever."""
    from mnist import train
    from mnist.run import Trainer

    starts, train_steps = [], Trainer.train_steps

    def clocked(trainer, num_steps):
        if not starts:  # compiled by now, because the evaluation before needs it
            starts.append(since_spawn())
        return train_steps(trainer, num_steps)

    Trainer.train_steps = clocked
    with tempfile.TemporaryDirectory() as workdir:
        sys.argv = ["mnist.train", f"--data_dir={folder}", "--epochs=1", f"--workdir={workdir}"]
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            train.launch()
        with open(os.path.join(workdir, "results.json")) as file:
            results = json.load(file)
    first_step = starts[0] + results["train_seconds"] / results["steps"]
    return make_result(first_step, [], lambda: results["test_accuracy"])


def fit_best(folder, epochs):
    import keras
    import tensorflow as tf

    images, labels = read_idx(folder, "train")
    images = tf.constant(images.astype(np.float32) / 255)
    labels = tf.constant(keras.utils.to_categorical(labels, 10), tf.float32)

    def gather_batch(indices):
        return tf.gather(images, indices), tf.gather(labels, indices)

    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).batch(BATCH_SIZE)
    batches = indices.map(gather_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return fit(make_sequential(steps_per_execution=50, jit_compile=False), epochs, folder, batches)


def fit_epochs(folder, epochs, seed):
    """The tutorial's recipe on the arrays of `fit_numpy`: seconds and test accuracy of each epoch."""
    import keras

    keras.utils.set_random_seed(seed)
    images, labels = read_idx(folder, "train")
    images, labels = images / 255.0, keras.utils.to_categorical(labels, 10)
    test_images, test_labels = read_idx(folder, "t10k")
    test_images, test_labels = test_images / 255.0, keras.utils.to_categorical(test_labels, 10)
    model = make_sequential()
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    model.fit(images[:BATCH_SIZE], labels[:BATCH_SIZE], batch_size=BATCH_SIZE, verbose=0)  # tracing does not count
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    result = {"seconds": [], "accuracies": []}
    for _ in range(epochs):
        result["seconds"].append(timed(lambda: model.fit(images, labels, batch_size=BATCH_SIZE, verbose=0)))
        result["accuracies"].append(model.evaluate(test_images, test_labels, batch_size=500, verbose=0)[1])
    return result


def make_step(dtype="float32", variant=None, **settings):
    """Returns the plain step, or that of mnist/research/<variant>.py; slices of a batch each get a core."""
    from mnist.model import CNN
    from mnist.step import TrainStep

    import keras
    import tensorflow as tf

    if "slices" in settings:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    cls = TrainStep
    if variant:
        cls = getattr(importlib.import_module(f"mnist.research.{variant}"), variant.capitalize())
    return cls(CNN(dtype=dtype), keras.optimizers.Adam(1e-3), **settings)


def make_train(step, examples, *, jit_compile=False):
    """Returns `train(num_steps)`, which runs inner loops and fetches their scalars, as mnist.loop does."""
    from mnist.data import as_tensors, epoch_batches
    from mnist.run import Plan
    from mnist.step import Context, make_train_loop

    import tensorflow as tf

    plan = Plan(len(examples.labels), batch_size=BATCH_SIZE, steps_per_loop=STEPS_PER_LOOP, epochs=10**6)
    tensors = as_tensors(examples)
    _, train_loop = make_train_loop(step, Context(jit_compile=jit_compile))
    done, batches = 0, None

    def train(num_steps):
        nonlocal done, batches
        end = done + num_steps
        while done < end:
            epoch, in_epoch = plan.position(done)
            if not in_epoch:
                batches = iter(epoch_batches(*tensors, step.epoch_order(examples, epoch), BATCH_SIZE))
            steps = min(STEPS_PER_LOOP, end - done, plan.steps_to_next_event(done))
            for values in train_loop(batches, tf.constant(steps))[0].values():
                values.numpy()
            done += steps

    return train


def count_steps(examples):
    return -(-len(examples.labels) // BATCH_SIZE)


def loop(folder, epochs, jit_compile=False, **options):
    from mnist import data
    from mnist.metrics import compute_metrics
    from mnist.model import make_predict_logits

    dataset = data.load("mnist", folder)
    examples, test = dataset.train, dataset.test
    step = make_step(**options)
    train = make_train(step, examples, jit_compile=jit_compile)
    train(1)
    first_step = since_spawn()
    train(count_steps(examples) - 1)
    seconds = [timed(train, count_steps(examples)) for _ in range(epochs)]
    predict_logits = make_predict_logits(step.model)
    return make_result(
        first_step, seconds, lambda: compute_metrics(predict_logits(test.images), test.labels)["accuracy"]
    )


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
        images, labels = (torch.from_numpy(array) for array in read_idx(folder, part))
        images = images.permute(0, 3, 1, 2).float() / 255
        return images.contiguous(memory_format=layout), labels.long()

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
            test_images, test_labels = make_tensors("t10k")
            return (model(test_images).argmax(1) == test_labels).float().mean()

    return make_result(first_step, seconds, accuracy)


ROWS = {
    "fit_numpy": fit_numpy,
    "fit_best": fit_best,
    "loop_float32": loop,
    "loop_bfloat16": functools.partial(loop, dtype="mixed_bfloat16"),
    "loop_split": functools.partial(loop, slices=2),
    "loop_split_bfloat16": functools.partial(loop, slices=2, dtype="mixed_bfloat16"),
    "loop_winograd": functools.partial(loop, variant="winograd", slices=2),
    "loop_winograd_bfloat16": functools.partial(loop, variant="winograd", slices=2, dtype="mixed_bfloat16"),
    "loop_augment": functools.partial(loop, variant="augment"),
    "loop_xla": functools.partial(loop, jit_compile=True),
    "torch_dataloader": functools.partial(torch_loop, resident=False),
    "torch_resident": torch_loop,
    "torch_bfloat16": functools.partial(torch_loop, bfloat16=True),
}


def scale(folder, steps=SCALING_STEPS):
    """The cost of an image, an epoch's shuffle included, and the memory."""
    from mnist import data
    from mnist.data import epoch_order

    examples = data.load("mnist", folder).train
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


def overheads(folder, repeats):
    """Times what train_and_evaluate does beside training, epochs of the bare loop, and evaluations in turn."""
    from mnist import data, loop
    from mnist.loop import train_and_evaluate
    from mnist.metrics import compute_metrics
    from mnist.model import make_predict_logits
    from mnist.run import Recorder, SilentRecorder

    import keras

    dataset = data.load("mnist", folder)
    test, num_steps = dataset.test, count_steps(dataset.train)
    step = make_step()
    train = make_train(step, dataset.train)
    train(num_steps)

    def beside(epochs, max_steps=None):
        """Seconds of a run that are not training: start-up, evaluation, summaries, progress, checkpoints."""
        with tempfile.TemporaryDirectory() as workdir:
            start = time.perf_counter()
            results = train_and_evaluate(make_step(), dataset, workdir, epochs=epochs, max_steps=max_steps)
            return time.perf_counter() - start - results["train_seconds"]

    beside(1, max_steps=10)  # what happens once in a process
    # From one epoch to three: start-up, and all that is traced only once, cancels out.
    per_epoch = [(beside(3) - beside(1)) / 2 for _ in range(repeats)]
    bare = [timed(train, num_steps) for _ in range(repeats)]

    def whole(observed):
        """Seconds of a run of five epochs, with all that is observed by default, or with none of it."""
        loop.Recorder = Recorder if observed else lambda *_: SilentRecorder()
        periods = {} if observed else {"norms_every": 0, "histograms_every": 0}
        with tempfile.TemporaryDirectory() as workdir:
            return timed(lambda: train_and_evaluate(make_step(), dataset, workdir, epochs=5, **periods))

    # Each comes first in turn: what follows a run may be slower than it.
    pairs = [{observed: whole(observed) for observed in (i % 2 == 0, i % 2 == 1)} for i in range(repeats)]
    observed, unobserved = ([pair[key] for pair in pairs] for key in (True, False))
    loop.Recorder = Recorder

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
    evaluation = {name: values[1:] for name, values in seconds.items()}
    whole_runs = {"observed": observed, "unobserved": unobserved}
    return {"bare": bare, "beside": per_epoch, "evaluation": evaluation, **whole_runs}


PROCESSES = {"fit_process": fit_process, "train_process": train_process}
CONTENDERS = ROWS | PROCESSES | {"fit_epochs": fit_epochs, "scale": scale, "overheads": overheads}


if __name__ == "__main__":
    name, folder, options = sys.argv[1:]
    labels = np.fromfile(os.path.join(folder, "train-labels-idx1-ubyte"), np.uint8, offset=8)
    if labels.max() != 9:
        sys.exit(f"error: {folder} has {labels.max() + 1} classes, the networks that are compared have ten.")
    print(json.dumps(CONTENDERS[name](folder, **json.loads(options))))
