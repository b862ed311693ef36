"""Training seconds to a test accuracy: python scripts/time_to_accuracy.py --target=0.99 --data_dir=MNIST

Two recipes, in turn, seed by seed, each run in a process of its own on two cores:

  fit       the tutorial's model.fit: NumPy arrays, batches of 64, Adam at 1e-3
  speedrun  mnist.research.speedrun with scripts/recipes/speedrun.flags

The length of a run is fixed beforehand and the same for all seeds; what counts is the accuracy at its
end. The speedrun's length is in its flags. The tutorial's rate is constant, so that a shorter run is the
beginning of a longer one: it is given the fewest epochs whose mean reaches the target, picked on the test
set, in its favour, or --fit_epochs if none does. Only training is timed, for both: no start-up, tracing or evaluation.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

from mnist import Error
from mnist.cli import run
from mnist.settings import Setting, local_path

import contenders
from benchmark import run_contender, spread
from compare import describe

RECIPE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recipes", "speedrun.flags")


def run_recipe(folder, seed):
    """Trains by the recipe. Returns: the run's results.json."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "mnist.research.speedrun", f"--flagfile={RECIPE}"]
        command += [f"--data_dir={folder}", f"--seed={seed}", f"--workdir={workdir}"]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise Error(f"{' '.join(command)} failed:\n{child.stderr[-3000:]}")
        with open(os.path.join(workdir, "results.json")) as file:
            return json.load(file)


def shortest(runs, target):
    """The fewest epochs at whose end the mean accuracy of `fit_epochs` reaches the target, or None."""
    means = [statistics.fmean(accuracies) for accuracies in zip(*(r["accuracies"] for r in runs), strict=True)]
    return next((epochs for epochs, mean in enumerate(means, 1) if mean >= target), None)


def format_row(name, length, accuracies, seconds, base):
    """A row of the table; `base`: the median seconds of the first row."""
    percent = describe([100 * accuracy for accuracy in accuracies])
    ratio = base / statistics.median(seconds)
    return f"| {name} | {length} | {percent.mean:.2f} ± {percent.std:.2f} % | {spread(seconds, 2)} | {ratio:.1f} |"


class Target:
    """What is to be reached, and how."""

    data_dir = Setting(None, "Folder with the data, as of mnist.train.", kind=local_path)
    target = Setting(0.99, "Mean test accuracy to reach, a share.", low=0.0, high=1.0)
    seeds = Setting(10, "Runs of each recipe: seeds 0, 1, 2...", low=2)
    fit_epochs = Setting(8, "The most epochs that the tutorial's recipe is given.", low=1)


def main(options):
    sys.stdout.reconfigure(line_buffering=True)
    dataset = contenders.load(options.data_dir)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
    fits, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        contenders.write_idx(folder, dataset)
        for seed in range(options.seeds):
            fits.append(run_contender("fit_epochs", folder, epochs=options.fit_epochs, seed=seed))
            ours.append(run_recipe(folder, seed))
            accuracies = " ".join(f"{accuracy:.4f}" for accuracy in fits[-1]["accuracies"])
            print(f"seed {seed}: fit {accuracies}; speedrun {ours[-1]['test_accuracy']:.4f}", file=sys.stderr)
    enough = shortest(fits, options.target)
    epochs = enough or options.fit_epochs
    length = f"{epochs} epochs" + ("" if enough else ", too few")
    seconds = [sum(r["seconds"][:epochs]) for r in fits]
    base = statistics.median(seconds)
    print(f"{dataset.name}, target {options.target:.2%}, {options.seeds} seeds\n")
    print("| recipe | length | test accuracy | training, s | times as fast |\n|---|---|---|---|---|")
    print(format_row("fit", length, [r["accuracies"][epochs - 1] for r in fits], seconds, base))
    accuracies = [r["test_accuracy"] for r in ours]
    print(format_row("speedrun", f"{ours[0]['steps']} steps", accuracies, [r["train_seconds"] for r in ours], base))
    reached = statistics.fmean(accuracies) >= options.target
    if not reached:
        print(f"\nThe speedrun does NOT reach {options.target:.2%}.")
    return 0 if reached else 1


if __name__ == "__main__":
    run(main, Target)
