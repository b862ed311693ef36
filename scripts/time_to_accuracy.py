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

from mnist import Error, data, run

import contenders
from absl import flags
from benchmark import run_contender, spread

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
    mean, std = 100 * statistics.fmean(accuracies), 100 * statistics.stdev(accuracies)
    ratio = base / statistics.median(seconds)
    return f"| {name} | {length} | {mean:.2f} ± {std:.2f} % | {spread(seconds, 2)} | {ratio:.1f} |"


def main():
    sys.stdout.reconfigure(line_buffering=True)
    flag = flags.FLAGS
    dataset = data.load("auto", flag.data_dir)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contenders.CORES])
    fits, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        contenders.write_idx(folder, dataset)
        for seed in range(flag.seeds):
            fits.append(run_contender("fit_epochs", folder, epochs=flag.fit_epochs, seed=seed))
            ours.append(run_recipe(folder, seed))
            accuracies = " ".join(f"{accuracy:.4f}" for accuracy in fits[-1]["accuracies"])
            print(f"seed {seed}: fit {accuracies}; speedrun {ours[-1]['test_accuracy']:.4f}", file=sys.stderr)
    enough = shortest(fits, flag.target)
    epochs = enough or flag.fit_epochs
    length = f"{epochs} epochs" + ("" if enough else ", too few")
    seconds = [sum(r["seconds"][:epochs]) for r in fits]
    base = statistics.median(seconds)
    print(f"{dataset.name}, target {flag.target:.2%}, {flag.seeds} seeds\n")
    print("| recipe | length | test accuracy | training, s | times as fast |\n|---|---|---|---|---|")
    print(format_row("fit", length, [r["accuracies"][epochs - 1] for r in fits], seconds, base))
    accuracies = [r["test_accuracy"] for r in ours]
    print(format_row("speedrun", f"{ours[0]['steps']} steps", accuracies, [r["train_seconds"] for r in ours], base))
    reached = statistics.fmean(accuracies) >= flag.target
    if not reached:
        print(f"\nThe speedrun does NOT reach {flag.target:.2%}.")
    return 0 if reached else 1


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Folder with the data, as of mnist.train.")
    flags.DEFINE_float("target", 0.99, "Mean test accuracy to reach, a share.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer("seeds", 10, "Runs of each recipe: seeds 0, 1, 2...", lower_bound=2)
    flags.DEFINE_integer("fit_epochs", 8, "The most epochs that the tutorial's recipe is given.", lower_bound=1)
    run(main)
