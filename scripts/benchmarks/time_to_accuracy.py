"""Measures training seconds to a test accuracy: python scripts/benchmarks/time_to_accuracy.py --data_dir=MNIST

Two recipes take turns, seed by seed. Each run is a process of its own on two cores.

- fit: model.fit of the tutorial, with NumPy arrays, batches of 64 and Adam at 1e-3.
- speedrun: mnist.research.speedrun with scripts/recipes/speedrun.flags.

All seeds of a recipe train for the same, fixed time, and the accuracy at the end counts. The flags of the speedrun fix
its steps. The tutorial gets the fewest epochs whose mean accuracy on the test set reaches the target, in its favour, or
--fit_epochs if none does. Only training is timed, without start-up, tracing and evaluation.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from mnist import Error
from mnist.cli import run
from mnist.metrics import seeds
from mnist.settings import Setting, local_path

import contenders
from benchmark import run_contender, spread

RECIPE = pathlib.Path(__file__).parents[1] / "recipes" / "speedrun.flags"


def run_recipe(folder, seed):
    """Trains with the recipe. Returns: the content of results.json."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "mnist.research.speedrun", f"--flagfile={RECIPE}"]
        command += [f"--data_dir={folder}", f"--seed={seed}", f"--workdir={workdir}"]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise Error(f"{' '.join(command)} failed:\n{child.stderr[-3000:]}")
        return json.loads((pathlib.Path(workdir) / "results.json").read_text())


def shortest(runs, target):
    """Returns the fewest epochs after which the mean accuracy of runs of `fit_epochs` reaches the target, or None."""
    means = [statistics.fmean(accuracies) for accuracies in zip(*(r["accuracies"] for r in runs), strict=True)]
    return next((epochs for epochs, mean in enumerate(means, 1) if mean >= target), None)


class Target:
    """The flags of this script."""

    data_dir = Setting(None, "Folder with the data, the same flag as in mnist.train.", kind=local_path)
    target = Setting(0.99, "Mean test accuracy to reach, as a share.", low=0.0, high=1.0)
    seeds = Setting(10, "Number of runs of each recipe, with seeds 0, 1, 2...", low=2)
    fit_epochs = Setting(8, "Largest number of epochs for the recipe of the tutorial.", low=1)


def main(options):
    sys.stdout.reconfigure(line_buffering=True)
    dataset = contenders.load(options.data_dir)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
    fits, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        contenders.write(folder, dataset)
        for seed in range(options.seeds):
            fits.append(run_contender("fit_epochs", folder, epochs=options.fit_epochs, seed=seed))
            ours.append(run_recipe(folder, seed))
            accuracies = " ".join(f"{accuracy:.4f}" for accuracy in fits[-1]["accuracies"])
            print(f"seed {seed}: fit {accuracies}; speedrun {ours[-1]['test_accuracy']:.4f}", file=sys.stderr)
    enough = shortest(fits, options.target)
    epochs = enough or options.fit_epochs
    length = f"{epochs} epochs" + ("" if enough else ", too few")
    print(f"{dataset.name}, target {options.target:.2%}, {options.seeds} seeds\n")
    print("| recipe | length | test accuracy | training, s | times as fast |\n|---|---|---|---|---|")
    base = statistics.median(sum(r["seconds"][:epochs]) for r in fits)
    rows = [("fit", length, [(r["accuracies"][epochs - 1], sum(r["seconds"][:epochs])) for r in fits])]
    rows += [("speedrun", f"{ours[0]['steps']} steps", [(r["test_accuracy"], r["train_seconds"]) for r in ours])]
    for name, steps, runs in rows:
        accuracies, seconds = zip(*runs, strict=True)
        _, mean, std, _, _ = seeds.summarize_values([100 * accuracy for accuracy in accuracies])
        ratio = base / statistics.median(seconds)
        print(f"| {name} | {steps} | {mean:.2f} ± {std:.2f} % | {spread(seconds, 2)} | {ratio:.1f} |")
    if statistics.fmean(r["test_accuracy"] for r in ours) >= options.target:
        return 0
    print(f"\nThe speedrun does NOT reach {options.target:.2%}.")
    return 1


if __name__ == "__main__":
    run(main, Target)
