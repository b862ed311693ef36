"""Compares this loop with `model.fit` and PyTorch: python scripts/benchmark.py --json=benchmark.json

Every contender trains the same network on the same data with batches of 64 and Adam at 1e-3, on two
cores, each in a process of its own, in turn (A B C A B C). An epoch that is not counted comes first.
No contender validates, saves or prints while the clock runs; PyTorch's keep no metrics either. Prints,
as Markdown:

- images/s: median, least and most over the repeats; their ratio to the first row; seconds per epoch;
  peak memory up to the end of training; seconds from the start of the process to the end of the first
  step (`fit_best`: the first 50, which it takes in one call); accuracy on the test set after all epochs,
  the one that is not counted among them.
- with --process: a whole process of the tutorial and of `python -m mnist.train`, one epoch each, from the command
  to the first step and to the end, and its peak memory with evaluation, pictures and saving.
- with --scaling: the cost of an image and the peak memory by the size of the data and by epochs.
- with --overheads: what evaluation, summaries, progress and checkpoints add to an epoch, and how long
  an evaluation takes by batch size, beside `model.evaluate`.

--notable leaves out the first. That both give the same bits, scripts/compare_with_fit.py shows. The rows are

  fit_numpy         model.fit on float64 arrays, as in tutorials; its progress bar is off
  fit_best          model.fit on tf.data in float32, gathered by index, 50 steps per execution
  loop_float32      this project's loop; loop_bfloat16, loop_xla: the same with one option
  loop_split        the same with --slices=2; loop_split_bfloat16: in bfloat16
  loop_winograd     mnist.research.winograd --slices=2; loop_winograd_bfloat16: in bfloat16
  loop_augment      mnist.research.augment, to be compared with loop_float32
  torch_dataloader  PyTorch with a DataLoader, as in its tutorials
  torch_resident    PyTorch on tensors in memory, channels last; torch_bfloat16: the same, autocast

What it printed last, and what was tried for speed, is in scripts/README.md.
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

from mnist import Error, files
from mnist.cli import run
from mnist.settings import Setting, local_path

import contenders

DATA_SIZES = (1, 4, 16)
EPOCHS = (1, 5, 20)


def run_contender(name, folder, **options):
    """Runs a contender in a process of its own. Returns: what it returns."""
    command = [sys.executable, contenders.__file__, name, folder, json.dumps(options)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "BENCHMARK_SPAWNED": str(time.time())}
    start = time.perf_counter()
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise Error(f"{name} failed:\n{child.stderr[-3000:]}")
    return json.loads(child.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def spread(values, digits):
    """Median, least and most, as text."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def run_table(folder, num_images, rows, repeats, epochs):
    results = {name: [] for name in rows}
    for repeat, name in itertools.product(range(repeats), rows):
        print(f"repeat {repeat + 1}/{repeats}: {name}", file=sys.stderr)
        results[name].append(run_contender(name, folder, epochs=epochs))
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


def run_processes(folder, repeats):
    runs = {name: [] for name in contenders.PROCESSES}
    for repeat, name in itertools.product(range(repeats), runs):
        print(f"process {repeat + 1}/{repeats}: {name}", file=sys.stderr)
        runs[name].append(run_contender(name, folder))
    print("\n| | first step, s | ratio | whole process, s | ratio | peak MiB | ratio |\n|---|---|---|---|---|---|---|")
    columns = {"first_step": 1, "process": 1, "peak_mib": 0}
    base = {key: statistics.median(run[key] for run in runs["fit_process"]) for key in columns}
    for name, found in runs.items():
        cells = [
            f"{spread([run[key] for run in found], digits)} | "
            f"{statistics.median(run[key] for run in found) / base[key]:.2f}"
            for key, digits in columns.items()
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    return runs


def run_scaling(folder, dataset):
    print("\n| training set | µs/image | of it the order | data MiB | peak MiB |\n|---|---|---|---|---|")
    sizes, runs = [], []
    for times in DATA_SIZES:
        with tempfile.TemporaryDirectory() as larger:
            contenders.write_idx(larger, dataset, times)
            sizes.append(size := run_contender("scale", larger))
        image, order = size["image_seconds"], size["order_seconds"] / size["images"]
        memory = f"{size['data_mib']:,.0f} | {size['peak_mib']:,.0f}"
        print(f"| {times}x, {size['images']:,} images | {image * 1e6:.1f} | {order * 1e6:.2f} | {memory} |")
    print("\n| epochs | µs/image | peak MiB |\n|---|---|---|")
    for epochs in EPOCHS:
        runs.append(result := run_contender("loop_float32", folder, epochs=epochs))
        image = sum(result["seconds"]) / epochs / len(dataset.train.labels)
        print(f"| {epochs} | {image * 1e6:.1f} | {result['peak_mib']:,.0f} |")
    return {"sizes": sizes, "epochs": runs}


def run_overheads(folder, repeats):
    result = run_contender("overheads", folder, repeats=repeats)
    evaluation = result["evaluation"]
    bare, evaluated = (statistics.median(s) for s in (result["bare"], evaluation["make_predict_logits 500"]))
    beside = [100 * seconds / bare for seconds in result["beside"]]
    without = [share - 100 * evaluated / bare for share in beside]
    print(f"\nAn epoch of the bare loop: {spread(result['bare'], 2)} s")
    print(f"Summaries, progress and a checkpoint add, in %: {spread(without, 1)}; with evaluation {spread(beside, 1)}")
    ratios = [100 * (a / b - 1) for a, b in zip(result["observed"], result["unobserved"], strict=True)]
    print(f"All that TensorBoard shows adds to a run of five epochs, in %, pairs in turn: {spread(ratios, 1)}")
    print("\n| evaluation, batch size | s | speed, ratio |\n|---|---|---|")
    base = statistics.median(next(iter(evaluation.values())))
    for name, seconds in evaluation.items():
        print(f"| {name} | {spread(seconds, 3)} | {base / statistics.median(seconds):.2f} |")
    return result


class Benchmark:
    """What is measured."""

    data_dir = Setting(None, "Folder with the data, as of mnist.train.", kind=local_path)
    repeats = Setting(5, "Processes for each contender.", low=1)
    epochs = Setting(2, "Epochs that are timed in each process, after one that is not.", low=1)
    rows = Setting(None, "Contenders to run, comma-separated; ratios are to the first. Default: all.", kind=str)
    table = Setting(True, "Time the contenders.")
    process = Setting(False, "Time whole processes, from the command to the first step and to the end.")
    scaling = Setting(False, "Measure the cost of an image by the size of the data and by epochs.")
    overheads = Setting(False, "Measure what evaluation, summaries, progress and checkpoints cost.")
    json = Setting(None, "File for all results.", kind=local_path)


def main(options):
    sys.stdout.reconfigure(line_buffering=True)  # into a log, too, each row as it comes
    rows = options.rows.split(",") if options.rows else list(contenders.ROWS)
    if unknown := [name for name in rows if name not in contenders.ROWS]:
        raise Error(f"--rows has {unknown[0]!r}, expected some of {', '.join(contenders.ROWS)}.")
    dataset = contenders.load(options.data_dir)
    if options.json:
        with files.write_errors(f"write {options.json}"), open(options.json, "a"):
            pass  # now, not after an hour
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed: its rows are left out.")
        rows = [name for name in rows if not name.startswith("torch")]
    num_images = len(dataset.train.labels)
    packages = {name for name in ("tensorflow", "keras", "torch", "numpy") if importlib.util.find_spec(name)}
    versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
    results = {"dataset": dataset.name, "images": num_images, "epochs": options.epochs, "versions": versions}
    print(
        f"{dataset.name}: {num_images:,} training images; {options.repeats} repeats of {options.epochs} epochs; ",
        end="",
    )
    print(", ".join(" ".join(item) for item in versions.items()), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        contenders.write_idx(folder, dataset)
        if options.table and rows:
            results["rows"] = run_table(folder, num_images, rows, options.repeats, options.epochs)
        if options.process:
            results["processes"] = run_processes(folder, options.repeats)
        if options.scaling:
            results["scaling"] = run_scaling(folder, dataset)
        if options.overheads:
            results["overheads"] = run_overheads(folder, options.repeats)
    if options.json:
        files.write_atomically(options.json, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Benchmark)
