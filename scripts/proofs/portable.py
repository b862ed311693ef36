"""Shows that --portable computes the same bits on other processors: python scripts/proofs/portable.py

Trains 20 steps of the CNN on 4 images each with Adam, with SGD and in two slices, in the environment of --portable. The
rows are this processor, one core of it, and processors without AVX-512 that QEMU emulates. A row has digests of all
weights, slots and metrics. It also compares operations one by one. The exit code is 1 if a digest differs, or an
operation that --portable does not refuse.

An emulated row takes some ten minutes. The last lines are the images per second of `mnist.train` with --portable and
without, medians of runs that take turns. Needs qemu-x86_64: apt-get install qemu-user
"""

import hashlib
import inspect
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

from mnist import Error, checkpoint, data
from mnist.cli import run as run_command
from mnist.data import Dataset, Examples
from mnist.distributed import Replicas, start
from mnist.loop import train_and_evaluate
from mnist.machine import NOT_PORTABLE, PORTABLE
from mnist.model import CNN
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import numpy as np
import tensorflow as tf

RUNS = {
    "Adam": lambda: (keras.optimizers.Adam(1e-3), 1),
    "SGD": lambda: (keras.optimizers.SGD(0.05, momentum=0.9), 1),
    "two slices": lambda: (keras.optimizers.Adam(1e-3), 2),
}
# Operations of TensorFlow on 1,003 numbers, most of them from -4 to 4.
OPERATIONS = {
    name: getattr(tf.raw_ops, name)
    for name in (
        *("Abs", "Acosh", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Erfc", "Exp", "Expm1", "Floor"),
        *("Log", "Log1p", "Neg", "Reciprocal", "Relu6", "Rint", "Rsqrt", "Selu", "Sigmoid", "Sign", "Sin", "Sinh"),
        *("Softplus", "Softsign", "Sqrt", "Square", "Tan", "Tanh", "Lgamma", "Digamma", "Erfinv", "Ndtri"),
    )
}


def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:12]


def compute(devices):
    """Prints the digests of all runs and operations on this processor, a JSON object."""
    train, _, test = data.load("digits")[2:5]
    test = Examples(test.images[:8], test.labels[:8])
    dataset = Dataset("digits", None, Examples(train.images[:40], train.labels[:40]), test, test, tuple("0123456789"))
    replicas = start(devices, 2)
    found = {"AVX-512": bool(np._core._multiarray_umath.__cpu_features__["AVX512F"])}
    for name, make in RUNS.items():
        keras.utils.set_random_seed(0)
        optimizer, slices = make()
        step = TrainStep(CNN(), optimizer, seed=0, slices=slices)
        options = {"batch_size": 4, "epochs": 2, "portable": True, "norms_every": 0, "histograms_every": 0}
        with tempfile.TemporaryDirectory() as workdir:
            shared = replicas if slices > 1 else Replicas()
            results = train_and_evaluate(step, dataset, workdir, replicas=shared, **options)
        arrays = [variable.numpy() for _, variable in sorted(checkpoint.variables_of(step).items())]
        numbers = [results[name] for name in ("train_loss", "validation_loss", "validation_accuracy")]
        found[name] = digest([*arrays, np.array(numbers)])
    x = tf.constant(np.random.default_rng(0).normal(0, 1.5, 1003), tf.float32)
    for name, operation in OPERATIONS.items():
        argument = next(iter(inspect.signature(operation).parameters))
        found[name] = digest([operation(**{argument: x}).numpy()])
    print(json.dumps(found))


def start_row(command, devices=1, environment=PORTABLE):
    arguments = [sys.executable, os.path.abspath(__file__), "--compute", f"--devices={devices}"]
    return subprocess.run([*command, *arguments], env=os.environ | environment, capture_output=True, text=True)


def measure_cost(pairs, folder):
    """Prints the speed of `mnist.train` on digits with --portable and without, in images per second."""
    speeds = {"": [], "--portable": []}
    for i in range(pairs):
        for flag, values in speeds.items():
            workdir = os.path.join(folder, f"{flag}{i}")
            command = [sys.executable, "-m", "mnist.train", "--dataset=digits", "--epochs=10", f"--workdir={workdir}"]
            done = subprocess.run([*command, *([flag] if flag else [])], capture_output=True, text=True)
            if done.returncode:
                raise Error(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}")
            with open(os.path.join(workdir, "results.json"), encoding="utf-8") as file:
                values.append(json.load(file)["images_per_second"])
    plain, portable = map(statistics.median, speeds.values())
    print(f"images per second: {plain:,.0f} by default, {portable:,.0f} with --portable ({portable / plain:.2f})")


class Portable:
    """The flags of this script."""

    cpus = Setting("Haswell,EPYC", "Processors to emulate, names of `qemu-x86_64 -cpu help`. Empty: none.")
    pairs = Setting(5, "Pairs of runs that measure the speed. 0: none.", low=0)
    compute = Setting(False, "Print the digests of this process alone.")
    devices = Setting(1, "Logical devices that share the slices of this process.", low=1)


def main(options):
    if options.compute:
        return compute(options.devices)
    cpus = [cpu for cpu in options.cpus.split(",") if cpu]
    if cpus and not shutil.which("qemu-x86_64"):
        raise Error("there is no qemu-x86_64: apt-get install qemu-user, or give --cpus= to compare without it.")
    rows = {"this processor": ([], 1), "two devices": ([], 2)}
    if shutil.which("taskset"):
        rows["one core"] = (["taskset", "-c", str(min(os.sched_getaffinity(0)))], 1)
    rows |= {f"emulated {cpu}": (["qemu-x86_64", "-cpu", cpu], 1) for cpu in cpus}
    different, expected = [], None
    for row, (command, devices) in rows.items():
        done = start_row(command, devices)
        if done.returncode:
            raise Error(f"{row}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout.splitlines()[-1])
        expected = expected or found
        print(f"{row:18} AVX-512 {found['AVX-512']!s:5}", *(f"{name} {found[name]}" for name in RUNS), flush=True)
        different += [(row, name) for name in (*RUNS, *OPERATIONS) if found[name] != expected[name]]
    print("operations that differ:", ", ".join(dict.fromkeys(name for _, name in different)) or "none")
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs:
            measure_cost(options.pairs, folder)
    if wrong := [f"{name} ({row})" for row, name in different if name not in NOT_PORTABLE]:
        raise Error(f"other bits, and not refused by --portable: {', '.join(wrong)}.")
    print("portable: all agree")
    return 0


if __name__ == "__main__":
    run_command(main, Portable)
