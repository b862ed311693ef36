"""Compares this loop with `model.fit` and PyTorch: python scripts/benchmark.py --json=benchmark.json

Every contender trains the same network on the same data with batches of 64 and Adam at 1e-3, on two
cores, each in a process of its own, in turn (A B C A B C). An epoch that is not counted comes first.
No contender validates, saves or prints while the clock runs; PyTorch's keep no metrics either. Prints,
as Markdown:

- images/s: median, least and most over the repeats; their ratio to the first row; seconds per epoch;
  peak memory up to the end of training; seconds from the start of the process to the end of the first
  step (`fit_best`: the first 50, which it takes in one call); accuracy on the test set after all epochs,
  the one that is not counted among them.
- whether `model.fit` and this loop, given the same weights and batches, end with the same bits.
- with --scaling: the cost of an image and the peak memory by the size of the data and by epochs.
- with --overheads: what evaluation, summaries, progress and checkpoints add to an epoch, and how long
  an evaluation takes by batch size, beside `model.evaluate`.

--notable and --nocheck leave out the first two. The rows are

  fit_numpy         model.fit on float64 arrays, as in tutorials; its progress bar is off
  fit_best          model.fit on tf.data in float32, gathered by index, 50 steps per execution
  loop_float32      this project's loop; loop_bfloat16, loop_xla: the same with one option
  loop_split        mnist.research.accumulate --slices=2 --intra_op_threads=1; loop_split_bfloat16: in bfloat16
  loop_winograd     mnist.research.winograd, with the same flags; loop_winograd_bfloat16: in bfloat16
  loop_augment      mnist.research.augment, to be compared with loop_float32
  torch_dataloader  PyTorch with a DataLoader, as in its tutorials
  torch_resident    PyTorch on tensors in memory, channels last; torch_bfloat16: the same, autocast

What it printed last is in the README.

What was tried, in ms for a step of 64, medians of interleaved processes:

- Where the time goes: the convolutions take 5.5 of the 6.1 ms of loop_split, the second one at 90 to 107
  GFLOP/s a core, which is all that the core has. With one operation on both cores, as by default, waking
  threads and uneven shares cost another millisecond.
- Kept. Crop to 26x26: 15 % fewer multiplications. ReLU after pooling: float32 7.4 to 7.3, loop_split 6.5 to
  6.35, loop_split_bfloat16 4.5 to 4.25. One tensor for data and NumPy: 94 MiB less, without
  tf.data's own copy of it 58 more.
- Fewer multiplications, by Winograd's method on tiles of 5x5, make the second convolution with its gradients
  3.7 to 2.0 on one core in float32, 2.2 to 1.4 in bfloat16; tiles of 4x4 3.0, of 2x2 5.0. Kept in
  loop_winograd. There: height and width before the images, else the transforms need transpositions; one
  transformed kernel for both slices, 0.2; the kernel's gradient before the input's, 0.2. Fetching the next
  batch during a step: no difference that lasts.
- In loop_winograd, loops of 100 steps in turn in one process, another and faster machine of the kind (2.4 ms in
  bfloat16): one kernel for the tiles of a row, 8 % faster; the first bias as a tenth tap, another 5 % (float32 2);
  a gradient of the kernel transformed for each slice on its core, 2 % in bfloat16, none in float32, dropped;
  output transforms tile by tile instead of block-diagonal, none; pooling and ReLU compiled with XLA, 1.13 ms in
  place of 0.08.
- Products of patches instead of convolutions: slower but for the gradient of the third kernel.
- More slices than cores: 2, 4, 8 slices take 6.2, 6.8, 7.6 in float32; 2, 4 take 4.2, 5.1 in bfloat16.
- bfloat16 but for one layer: 4.8 with the first convolution in float32, 4.5 with the third, 4.25 with the
  dense one, as much as with all in bfloat16.
- The pipeline: one batch again and again instead, 0.1 less. tf.data without autotune and with a thread of its
  own, no difference: it is hidden behind the step.
- The optimizer: plain SGD instead of Adam, 0.15 less. Adam compiled with XLA, 0.5 more, and other bits.
- oneDNN on the caller's thread, 0.9 more. One inter-op thread, 0.5 more. malloc that returns nothing, huge
  pages: no difference, there are no page faults in a step. The default with both gradients of a convolution
  one after the other, 0.3 more; with threads that do not spin while they wait, 0.4 less, for which TensorFlow 2
  has no public setting.
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

from mnist import Error, data, files, run

import contenders
from absl import flags

DATA_SIZES = (1, 4, 16)
EPOCHS = (1, 5, 20)


def run_contender(name, folder, **options):
    """Runs a contender in a process of its own. Returns: what it returns."""
    command = [sys.executable, contenders.__file__, name, folder, json.dumps(options)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "BENCHMARK_SPAWNED": str(time.time())}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise Error(f"{name} failed:\n{child.stderr[-3000:]}")
    return json.loads(child.stdout.splitlines()[-1])


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


def run_check(folder):
    result = run_contender("check", folder)
    verdict = "equal to the last bit" if result["equal"] else f"apart by up to {result['difference']:.1e}"
    print(f"\n{result['weights']:,} weights after {result['steps']} steps of model.fit and of this loop: {verdict}")
    return result


def run_scaling(folder, dataset, steps):
    print("\n| training set | µs/image | of it the order | data MiB | peak MiB |\n|---|---|---|---|---|")
    sizes, runs = [], []
    for times in DATA_SIZES:
        with tempfile.TemporaryDirectory() as larger:
            contenders.write_idx(larger, dataset, times)
            sizes.append(size := run_contender("scale", larger, steps=steps))
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
    print("\n| evaluation, batch size | s | speed, ratio |\n|---|---|---|")
    base = statistics.median(next(iter(evaluation.values())))
    for name, seconds in evaluation.items():
        print(f"| {name} | {spread(seconds, 3)} | {base / statistics.median(seconds):.2f} |")
    return result


def main():
    sys.stdout.reconfigure(line_buffering=True)  # into a log, too, each row as it comes
    flag = flags.FLAGS
    rows = flag.rows or list(contenders.ROWS)
    if unknown := [name for name in rows if name not in contenders.ROWS]:
        raise Error(f"--rows has {unknown[0]!r}, expected some of {', '.join(contenders.ROWS)}.")
    if flag.json:
        with files.write_errors(f"write {flag.json}"), open(flag.json, "a"):
            pass  # now, not after an hour
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
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
        contenders.write_idx(folder, dataset)
        if flag.table and rows:
            results["rows"] = run_table(folder, num_images, rows, flag.repeats, flag.epochs)
        if flag.check:
            results["check"] = run_check(folder)
        if flag.scaling:
            results["scaling"] = run_scaling(folder, dataset, flag.scaling_steps)
        if flag.overheads:
            results["overheads"] = run_overheads(folder, flag.repeats)
    if flag.json:
        files.write_atomically(flag.json, json.dumps(results, indent=2) + "\n")
    return 0 if results.get("check", {}).get("equal", True) else 1


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Folder with the data, as of mnist.train.")
    flags.DEFINE_integer("repeats", 5, "Processes for each contender.", lower_bound=1)
    flags.DEFINE_integer("epochs", 2, "Epochs that are timed in each process, after one that is not.", lower_bound=1)
    flags.DEFINE_list("rows", None, "Contenders to run, comma-separated; ratios are to the first. Default: all.")
    flags.DEFINE_bool("table", True, "Time the contenders.")
    flags.DEFINE_bool("check", True, "Compare the weights of model.fit and of this loop, bit by bit.")
    flags.DEFINE_bool("scaling", False, "Measure the cost of an image by the size of the data and by epochs.")
    flags.DEFINE_integer(
        "scaling_steps", 400, "Steps that are timed at each size of the data.", lower_bound=contenders.STEPS_PER_LOOP
    )
    flags.DEFINE_bool("overheads", False, "Measure what evaluation, summaries, progress and checkpoints cost.")
    flags.DEFINE_string("json", None, "File for all results.")
    run(main)
