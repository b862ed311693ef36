"""Compares the speed with `model.fit` and PyTorch: python scripts/benchmarks/benchmark.py --data_dir=MNIST

Every contender trains the same network on the same data on two cores, with batches of 64 and Adam at 1e-3. Each run is
a process of its own, and the contenders take turns (A B C A B C). One epoch that does not count comes first. The output
is Markdown. The columns of the table are

- images/s: median, minimum and maximum over the repeats, and the ratio of the median to the first row,
- s/epoch: seconds of training per epoch, without evaluations and checkpoints,
- peak MiB: peak memory. The rows of mnist include evaluations and pictures,
- first step: seconds from the start of the process to the end of the first step (50 steps for `fit_best`),
- test accuracy after all epochs.

Further measurements, with --notable alone:

- --process: a whole process of one epoch, the tutorial and `python -m mnist.train`, and the time of a further epoch.
- --autotune: seconds to drop a tf.data iterator on one core, with tf.data's autotune and without.

The rows are

- fit_numpy: model.fit on float64 arrays, as in tutorials, without its progress bar.
- fit_best: model.fit on tf.data in float32, gathered by index, with 50 steps per execution.
- loop_float32: python -m mnist.train. Other rows add --precision=bfloat16, --slices=2 (split) or --jit_compile (xla).
- loop_winograd: python -m mnist.research.winograd --slices=2. The row loop_augment is mnist.research.augment.
- torch_dataloader: PyTorch with a DataLoader, as in its tutorials.
- torch_resident: PyTorch on tensors in memory, channels last. The row torch_bfloat16 adds autocast.
"""

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

from mnist import Error
from mnist.cli import run
from mnist.settings import Setting, local_path

import contenders

COLUMNS = {"first_step": 1, "process": 1, "peak_mib": 0}  # keys of the results of processes, and their decimals
LIVES = (0.5, 1.0, 2.0, 4.0)  # seconds


def run_contender(name, folder, **options):
    """Runs a contender in a process of its own. Returns: its result, with the seconds of the `process`."""
    command = [sys.executable, contenders.__file__, name, folder, json.dumps(options)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "BENCHMARK_SPAWNED": str(time.time())}
    start = time.perf_counter()
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise Error(f"{name} failed:\n{child.stderr[-3000:]}")
    result = json.loads(child.stdout.splitlines()[-1])
    return result | {"process": time.perf_counter() - start} if isinstance(result, dict) else result


def spread(values, digits):
    """Returns the median, the minimum and the maximum as text."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def run_in_turn(folder, jobs, repeats):
    """Runs jobs, a dict from names to a contender and its options. Returns: a dict from names to lists of results."""
    results = {name: [] for name in jobs}
    for repeat, (name, (contender, options)) in itertools.product(range(repeats), jobs.items()):
        print(f"repeat {repeat + 1}/{repeats}: {name}", file=sys.stderr)
        results[name].append(run_contender(contender, folder, **options))
    return results


def print_table(folder, num_images, rows, repeats, epochs):
    results = run_in_turn(folder, {name: (name, {"epochs": epochs}) for name in rows}, repeats)
    print("| | images/s | ratio | s/epoch | peak MiB | first step, s | test accuracy |\n|---|---|---|---|---|---|---|")
    rates = {name: [num_images * epochs / sum(r["seconds"]) for r in runs] for name, runs in results.items()}
    base = statistics.median(rates[rows[0]])
    for name, runs in results.items():
        rate = statistics.median(rates[name])
        peak, first, accuracy = (statistics.median(r[k] for r in runs) for k in ("peak_mib", "first_step", "accuracy"))
        cells = [spread(rates[name], 0), f"{rate / base:.2f}", f"{num_images / rate:.2f}", f"{peak:,.0f}"]
        print(f"| {' | '.join([name, *cells, f'{first:.1f}', f'{accuracy:.2%}'])} |")


def print_processes(folder, repeats, more=4):
    jobs = {name: (name, {}) for name in ("fit_process", "train_process")}
    results = run_in_turn(folder, jobs | {"more epochs": ("loop_float32", {"epochs": more})}, repeats)
    longer = results.pop("more epochs")
    print("\n| | first step, s | ratio | whole process, s | ratio | peak MiB | ratio |\n|---|---|---|---|---|---|---|")
    base = {key: statistics.median(r[key] for r in results["fit_process"]) for key in COLUMNS}
    for name, runs in results.items():
        values = {key: [r[key] for r in runs] for key in COLUMNS}
        cells = [f"{spread(v, COLUMNS[key])} | {statistics.median(v) / base[key]:.2f}" for key, v in values.items()]
        print(f"| {' | '.join([name, *cells])} |")
    pairs = zip(results["train_process"], longer, strict=True)
    whole = [(long["process"] - short["process"]) / more for short, long in pairs]
    training = [statistics.mean(result["seconds"]) for result in longer]
    print(f"\nA further epoch of mnist.train: {spread(whole, 2)} s, of these {spread(training, 2)} s of training")


def print_autotune(folder, repeats):
    print("\n| iterator read for, s | dropped with autotune after, s | without autotune, s |\n|---|---|---|")
    results = run_contender("autotune", folder, lives=LIVES, repeats=repeats)
    for life, (with_autotune, without) in zip(LIVES, results, strict=True):
        print(f"| {life:g} | {spread(with_autotune, 3)} | {spread(without, 3)} |")


class Benchmark:
    """The flags of this script."""

    data_dir = Setting(None, "Folder with the data, the same flag as in mnist.train.", kind=local_path)
    repeats = Setting(5, "Processes for each contender.", low=1)
    epochs = Setting(2, "Timed epochs in each process, after one that is not timed.", low=1)
    rows = Setting(None, "Contenders to run, comma-separated. Ratios are to the first. Default: all.", kind=str)
    table = Setting(True, "Time the contenders.")
    process = Setting(False, "Time whole processes.")
    autotune = Setting(False, "Time the end of tf.data iterators.")


def main(options):
    sys.stdout.reconfigure(line_buffering=True)  # so that a log has each row at once
    rows = options.rows.split(",") if options.rows else list(contenders.ROWS)
    if unknown := [name for name in rows if name not in contenders.ROWS]:
        raise Error(f"--rows has {unknown[0]!r}, expected some of {', '.join(contenders.ROWS)}.")
    dataset = contenders.load(options.data_dir)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
    packages = [name for name in ("keras", "numpy", "tensorflow", "torch") if importlib.util.find_spec(name)]
    if "torch" not in packages:
        print("PyTorch is not installed: its rows are left out.")
        rows = [name for name in rows if not name.startswith("torch")]
    num_images = len(dataset.train.labels)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    repeats = f"{options.repeats} repeats of {options.epochs} epochs"
    print(f"{dataset.name}: {num_images:,} training images; {repeats}; {versions}\n")
    with tempfile.TemporaryDirectory() as folder:
        contenders.write(folder, dataset)
        if options.table and rows:
            print_table(folder, num_images, rows, options.repeats, options.epochs)
        if options.process:
            print_processes(folder, options.repeats)
        if options.autotune:
            print_autotune(folder, options.repeats)


if __name__ == "__main__":
    run(main, Benchmark)
