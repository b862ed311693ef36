"""Is the difference between two settings real? python scripts/compare.py W/SETTING1 W/SETTING2

Each folder is a setting of scripts/sweep.py, with a results.json in each seed=N, or a sweep of a single
setting. What sweep.py counts as unfinished, results that are older than sweep.flags, is left out. Runs of the
same seed are pairs. Prints both means with their standard deviations, the mean difference (second minus first)
with its 95 % interval (Student's t), the p-values of the paired t-test and of Wilcoxon's signed-rank test, and
the effect size: Cohen's d_z, the mean difference divided by the differences' standard deviation. --metric=NAME
compares another number of results.json; a seed where it is null or missing is left out.

Of two plain runs, python scripts/compare.py runs/a runs/b, it prints the flags that differ and all metrics.
"""

import contextlib
import glob
import math
import os
import re

from mnist import Error
from mnist.cli import run
from mnist.run import provenance
from mnist.settings import Setting

import numpy as np
import scipy.stats
from results import LEVEL, describe, is_finished, is_percent, missing, read_results, value_of


def read_values(folder, metric):
    """Reads a setting's finished runs. Returns: a dict from data set and seed to what `value_of` says of `metric`."""
    folders = []
    for pattern in ("seed=*", "*/seed=*"):
        folders = folders or [*filter(is_finished, glob.glob(os.path.join(glob.escape(folder), pattern)))]
    settings = sorted({os.path.dirname(path) for path in folders})
    if len(settings) != 1:
        none = "has no seed=N/results.json, or only some that are older than the sweep.flags beside them"
        found = f"has {len(settings)} settings, as {settings[0]}" if settings else none
        raise Error(f"{folder} {found if os.path.isdir(folder) else 'is not a folder'}: name that of one setting.")
    runs = {}
    for path in folders:
        seed = os.path.basename(path).removeprefix("seed=")
        if not re.fullmatch("[0-9]+", seed):
            raise Error(f"{path} is not named as a run of a sweep, expected seed=N.")
        results = read_results(path)
        runs[results["dataset"], int(seed)] = results
    if said := missing(metric, runs.values()):
        raise Error(f"{folder}: {said}")
    return {key: value_of(results, metric) for key, results in runs.items()}


def compare(first, second):
    """Compares two dicts from data set and seed to values, paired by both. Returns: a dict of numbers.

    Pairs with None are left out. If all differences are equal, t-test and d_z are not defined and NaN.
    """
    seeds = sorted(key for key in first.keys() & second.keys() if None not in (first[key], second[key]))
    if len(seeds) < 2:
        found = f"{len(seeds)} seeds on one data set in common, of {len(first)} and {len(second)}"
        raise Error(f"{found}: expected at least 2 with a value in both.")
    a, b = (np.array([values[seed] for seed in seeds]) for values in (first, second))
    # Differences that are equal but for the last bits of floats are made equal.
    largest = max(np.abs(a).max(), np.abs(b).max())
    differences = np.round(b - a, 11 - math.ceil(math.log10(largest))) if largest else b - a
    n, mean, std, low, high = describe(differences)
    constant = np.ptp(differences) == 0
    return {
        "n": n,
        "runs": (len(first), len(second)),
        "means": (a.mean(), b.mean()),
        "stds": (a.std(ddof=1), b.std(ddof=1)),
        "difference": mean,
        "interval": (mean, mean) if constant else (low, high),
        "p_t": np.nan if constant else scipy.stats.ttest_1samp(differences, 0).pvalue,
        "p_wilcoxon": scipy.stats.wilcoxon(differences).pvalue if differences.any() else 1.0,
        "d_z": np.nan if constant else mean / std,
    }


def report(names, metric, result):
    """The result of `compare` as text, the verdict in words at its end."""
    n, low, high = result["n"], *result["interval"]
    title = f"{metric.replace('_', ' ')}{' in percent' if is_percent(metric) else ''}, {n} seeds"
    lines = [title + (" in common, of {} and {}".format(*result["runs"]) if set(result["runs"]) != {n} else "")]
    digits = ".3f" if is_percent(metric) else ".5g"
    width = max(map(len, [*names, "Wilcoxon p-value"])) + 2
    for name, mean, std in zip(names, result["means"], result["stds"], strict=True):
        lines.append(f"{name:<{width}}{mean:{digits}} ± {std:{digits}}")
    difference, low, high = (f"{number:+{digits}}" for number in (result["difference"], low, high))
    lines.append(f"{'difference':<{width}}{difference}, 95 % interval {low} .. {high}")
    for name, key in (("t-test p-value", "p_t"), ("Wilcoxon p-value", "p_wilcoxon"), ("Cohen's d_z", "d_z")):
        lines.append(f"{name:<{width}}" + ("not defined" if np.isnan(result[key]) else f"{result[key]:.3g}"))
    if 2 * 0.5**n > LEVEL:
        lines[-2] += f" (at n = {n} never below {2 * 0.5**n:.2g})"
    test, p = ("t-test", result["p_t"]) if not np.isnan(result["p_t"]) else ("Wilcoxon", result["p_wilcoxon"])
    verdict = f"is{'' if p < LEVEL else ' not'} distinguishable from chance at n = {n} ({test}, p = {p:.3g})"
    equal = "Every seed differs by the same. " if np.isnan(result["p_t"]) else ""
    if equal and not result["difference"]:
        return "\n".join([*lines, "", f"There is no difference: each of the {n} seeds gave the same."])
    return "\n".join([*lines, "", f"{equal}The difference {verdict}."])


def read_run(folder):
    """Reads a plain run. Returns: its flags and its numbers, two dicts, from names to values."""
    results, flags = read_results(folder), {}
    with contextlib.suppress(OSError), open(os.path.join(folder, "flags.txt"), errors="replace") as file:
        for line in file.read().splitlines()[1:]:
            name, _, value = line.lstrip("-").partition("=")
            flags[f"--{name}"] = value or "true"
    numbers = {name: value for name, value in results.items() if value is None or isinstance(value, float)}
    return flags, {name: value for name, value in numbers.items() if name not in provenance.KEYS}


def compare_runs(folders):
    """The flags that differ between two plain runs and all their metrics, as text."""
    (flags, numbers), (other_flags, other_numbers) = map(read_run, folders)
    names = [name for name in dict.fromkeys([*flags, *other_flags]) if flags.get(name) != other_flags.get(name)]
    rows = [("", *folders)] + [(name, flags.get(name, "-"), other_flags.get(name, "-")) for name in names]
    for name in dict.fromkeys([*numbers, *other_numbers]):
        pair = [values.get(name) for values in (numbers, other_numbers)]
        cells = ["-" if value is None else f"{value:.6g}" for value in pair]
        rows.append((name, *cells, "" if None in pair else f"{pair[1] - pair[0]:+.4g}"))
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(3)]
    lines = [
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + "".join(row[3:]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


class Compare:
    """What is compared."""

    metric = Setting("test_accuracy", "What to compare over the seeds: any number of results.json.")


def main(options, folders):
    if len(folders) != 2:
        raise Error(f"expected two folders, not {len(folders)}: python scripts/compare.py W1 W2")
    plain = [folder for folder in folders if is_finished(folder)]
    if plain and len(plain) < 2:
        other = next(folder for folder in folders if folder not in plain)
        raise Error(f"{plain[0]} is a finished run, {other} is none: it has no results.json, or of other flags.")
    if plain:
        print(compare_runs(folders))
    else:
        values = [read_values(folder, options.metric) for folder in folders]
        print(report(folders, options.metric, compare(*values)))


if __name__ == "__main__":
    run(main, Compare, arguments=True)
