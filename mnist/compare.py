"""Tests whether the difference between two settings is real: python -m mnist.compare W/SETTING1 W/SETTING2

Each folder holds one setting of mnist.sweep (or a sweep of one setting), with a results.json in each seed=N. Results
that are older than the sweep.flags beside them are ignored. Runs with the same seed are pairs. Prints

- both means and standard deviations, and the mean difference, second minus first, with its 95 % interval (Student's t),
- the p-values of the paired t-test and of Wilcoxon's signed-rank test,
- Cohen's d_z, the mean difference over the standard deviation of the differences.

--metric=NAME compares another number of results.json, over the seeds that have it. With the folders of two plain runs
(python -m mnist.compare runs/a runs/b) it prints all flags that differ and all metrics. It subtracts no metrics that
were measured on different images.
"""

import contextlib
import glob
import math
import os
import re

from mnist import Error, data
from mnist.cli import run
from mnist.metrics import seeds
from mnist.run import provenance
from mnist.settings import Setting

import numpy as np
import scipy.stats

_CODE = ("program_revision", "package_version", "package_revision", "python", "tensorflow", "keras", "numpy")
_MAX_LINES = 60  # of changes.diff that are printed


def read_values(folder, metric):
    """Reads the finished runs of a setting.

    Returns: a dict from (images, seed) to the metric, as `seeds.metric_of` returns it. The images are what
      `seeds.images_of` returns, or the name of the data set. Raises: `mnist.Error`.
    """
    runs = {}
    for path in _find_runs(folder):
        seed = os.path.basename(path).removeprefix("seed=")
        if not re.fullmatch("[0-9]+", seed):
            raise Error(f"{path} does not have the name of a run of a sweep, expected seed=N.")
        results = seeds.read_results(path)
        runs[seeds.images_of(results, metric) or results["dataset"], int(seed)] = results
    if message := seeds.missing_metric(metric, runs.values()):
        raise Error(f"{folder}: {message}")
    return {key: seeds.metric_of(results, metric) for key, results in runs.items()}


def _find_runs(folder):
    """Returns the folders of the finished runs of a setting. Raises: `mnist.Error` unless there is one setting."""
    folders = []
    for pattern in ("seed=*", "*/seed=*"):
        paths = glob.glob(os.path.join(glob.escape(folder), pattern))
        folders = folders or [path for path in paths if seeds.is_finished(path)]
    settings = sorted({os.path.dirname(path) for path in folders})
    if len(settings) != 1:
        none = "has no seed=N/results.json, or only some that are older than the sweep.flags beside them"
        found = f"has {len(settings)} settings, as {settings[0]}" if settings else none
        raise Error(
            f"{folder} {found if os.path.isdir(folder) else 'is not a folder'}: name the folder of one setting."
        )
    return folders


def compare(first, second):
    """Compares two dicts from (images, seed) to values, without pairs that lack a value.

    Returns: a dict of numbers. t-test and d_z are NaN if all differences are equal, because neither is defined then.
    Raises: `mnist.Error` for fewer than two pairs.
    """
    pairs = sorted(key for key in first.keys() & second.keys() if None not in (first[key], second[key]))
    if len(pairs) < 2:
        found = f"{len(pairs)} seeds on one data set in common, of {len(first)} and {len(second)}"
        raise Error(f"{found}: expected at least 2 with a value in both.")
    a, b = (np.array([values[pair] for pair in pairs]) for values in (first, second))
    # Rounds, so that differences which are equal except for the last bits of floats become equal.
    largest = max(np.abs(a).max(), np.abs(b).max())
    differences = np.round(b - a, 11 - math.ceil(math.log10(largest))) if largest else b - a
    n, mean, std, low, high = seeds.summarize_values(differences)
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
    """Returns the result of `compare` as text, which ends with the verdict in words."""
    n, low, high = result["n"], *result["interval"]
    title = f"{metric.replace('_', ' ')}{' in percent' if seeds.is_percent(metric) else ''}, {n} seeds"
    lines = [title + (" in common, of {} and {}".format(*result["runs"]) if set(result["runs"]) != {n} else "")]
    digits = ".3f" if seeds.is_percent(metric) else ".5g"
    width = max(map(len, [*names, "Wilcoxon p-value"])) + 2
    for name, mean, std in zip(names, result["means"], result["stds"], strict=True):
        lines.append(f"{name:<{width}}{mean:{digits}} ± {std:{digits}}")
    difference, low, high = (f"{number:+{digits}}" for number in (result["difference"], low, high))
    lines.append(f"{'difference':<{width}}{difference}, 95 % interval {low} .. {high}")
    for name, key in (("t-test p-value", "p_t"), ("Wilcoxon p-value", "p_wilcoxon"), ("Cohen's d_z", "d_z")):
        lines.append(f"{name:<{width}}" + ("not defined" if np.isnan(result[key]) else f"{result[key]:.3g}"))
    if 2 * 0.5**n > seeds.LEVEL:
        lines[-2] += f" (at n = {n} never below {2 * 0.5**n:.2g})"
    test, p = ("t-test", result["p_t"]) if not np.isnan(result["p_t"]) else ("Wilcoxon", result["p_wilcoxon"])
    verdict = f"is{'' if p < seeds.LEVEL else ' not'} distinguishable from chance at n = {n} ({test}, p = {p:.3g})"
    equal = "Every seed differs by the same. " if np.isnan(result["p_t"]) else ""
    if equal and not result["difference"]:
        return "\n".join([*lines, "", f"There is no difference: each of the {n} seeds gave the same."])
    return "\n".join([*lines, "", f"{equal}The difference {verdict}."])


def _read_flags(folder):
    """Returns the flags of a run, a dict, which is empty without a flags.txt."""
    flags = {}
    with contextlib.suppress(OSError), open(os.path.join(folder, "flags.txt"), errors="replace") as file:
        for line in file.read().splitlines()[1:]:
            name, _, value = line.lstrip("-").partition("=")
            flags[f"--{name}"] = value or "true"
    return flags


def _read_run(folder):
    """Reads a plain run. Returns: three dicts, its flags, its numbers and all of its results."""
    results = seeds.read_results(folder)
    numbers = {name: value for name, value in results.items() if value is None or isinstance(value, float)}
    numbers = {name: value for name, value in numbers.items() if name not in provenance.KEYS}
    return _read_flags(folder), numbers, results


def _other_images(runs, metric):
    """Returns what shows that two runs measured a metric on different images: a flag or a digest. "" if they did not.

    `runs` holds two pairs, the flags and the results of each run.
    """
    if not re.match("(?:best_)?(train|validation|test)_(?!seconds)", metric):
        return ""
    (flags, results), (other_flags, other_results) = runs
    held = ["--holdout", "--holdout_by"]
    names = ["--dataset", "--data_dir", *(held if "test_" not in metric else [])]
    flags, other_flags = (
        {"--holdout_by": "end"} | flags | {"--dataset": results["dataset"]},
        {"--holdout_by": "end"} | other_flags | {"--dataset": other_results["dataset"]},
    )
    different = [name for name in names if flags.get(name) != other_flags.get(name)]
    digests = [seeds.images_of(each, metric) for each in (results, other_results)]
    if None not in digests:
        return "" if digests[0] == digests[1] else (different or ["the content of the data"])[0]
    # An older version kept no digest. A data set that `mnist.data` recognizes is the same in any folder.
    ignored = ["--data_dir"] * (results["dataset"] in data.NAMES[1:]) + held * ("validation_" not in metric)
    return next((name for name in different if name not in ignored), "")


def compare_runs(folders):
    """Returns a table of the flags that differ between two plain runs, and of all their metrics, as text."""
    (flags, numbers, results), (other_flags, other_numbers, other_results) = map(_read_run, folders)
    reasons = []
    names = [name for name in dict.fromkeys([*flags, *other_flags]) if flags.get(name) != other_flags.get(name)]
    rows = [("", *folders, "")] + [(name, flags.get(name, "-"), other_flags.get(name, "-"), "") for name in names]
    for name in _CODE:
        pair = [str(values.get(name))[:12] for values in (results, other_results)]
        rows += [(name, *pair, "")] if pair[0] != pair[1] else []
    for name in dict.fromkeys([*numbers, *other_numbers]):
        pair = [values.get(name) for values in (numbers, other_numbers)]
        cells = ["-" if value is None else f"{value:.6g}" for value in pair]
        reason = _other_images([(flags, results), (other_flags, other_results)], name)
        reasons += [reason] if reason else []
        rows.append((name, *cells, "" if None in pair or reason else f"{pair[1] - pair[0]:+.4g}"))
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if reasons:
        lines.append(f"no difference of metrics on different images: {reasons[0]} differs")
    return "\n".join([*(line.rstrip() for line in lines), *_changes(folders)])


def _changes(folders):
    """Returns the first lines of the code in each run's changes.diff that is not in the file of the other run."""
    parts = {folder: [] for folder in folders}
    for folder in folders:
        with contextlib.suppress(OSError), open(os.path.join(folder, "changes.diff"), errors="replace") as file:
            parts[folder] = re.split("^(?=diff --git )", file.read(), flags=re.MULTILINE)
    lines = []
    for folder, others in zip(folders, reversed(folders), strict=True):
        if own := [line for part in parts[folder] if part not in parts[others] for line in part.splitlines()]:
            lines += [
                "",
                f"not committed, in {folder} alone, {len(own):,} lines of {os.path.join(folder, 'changes.diff')}:",
            ]
            lines += own[:_MAX_LINES] + ["..."] * (len(own) > _MAX_LINES)
    return lines


class Compare:
    """The flags of this command."""

    metric = Setting("test_accuracy", "Metric to compare over the seeds, any number of results.json.")


def main(options, folders):
    if len(folders) != 2:
        raise Error(f"expected two folders, not {len(folders)}: python -m mnist.compare W1 W2")
    plain = [folder for folder in folders if seeds.is_finished(folder)]
    if len(plain) == 1:
        other = next(folder for folder in folders if folder not in plain)
        raise Error(f"{plain[0]} is a finished run, {other} is not: it has no results.json, or one of other flags.")
    if plain:
        print(compare_runs(folders))
    else:
        values = [read_values(folder, options.metric) for folder in folders]
        runs = [_read_run(_find_runs(folder)[0])[::2] for folder in folders]
        if reason := _other_images(runs, options.metric):
            raise Error(f"--metric={options.metric} was measured on different images: {reason} differs.")
        print(report(folders, options.metric, compare(*values)))


if __name__ == "__main__":
    run(main, Compare, arguments=True)
