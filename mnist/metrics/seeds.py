"""Statistics of one metric over the seeds of a setting, from the results.json of each run."""

import json
import math
import os
import re
import statistics

from mnist import Error

import numpy as np
import scipy  # loads stats at its first use, because training does without

LEVEL = 0.05  # significance level of tests


def summarize_values(values):
    """Returns the number, mean and sample standard deviation of floats, and both ends of the mean's 95 % interval.

    The interval follows Student's t-distribution. Too few values give NaN.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    std = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * std / n**0.5 if n > 1 else math.nan
    return n, mean, std, mean - half, mean + half


def is_finished(folder):
    """Returns whether a run has a results.json that is not older than its sweep.flags, if there are any."""
    path, flagfile = (os.path.join(folder, name) for name in ("results.json", "sweep.flags"))
    if not os.path.isfile(path):
        return False
    return not os.path.isfile(flagfile) or os.stat(path).st_mtime_ns >= os.stat(flagfile).st_mtime_ns


def read_results(folder):
    """Reads the results.json of a run.

    Returns: a dict, with None for NaN and infinity. Raises: `mnist.Error` if the file is missing or damaged.
    """
    path, results = os.path.join(folder, "results.json"), None
    try:
        with open(path) as file:
            results = json.load(file, parse_constant=lambda _: None)
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        pass
    if not isinstance(results, dict) or not isinstance(results.get("dataset"), str):
        raise Error(f"{path} is damaged, or no run wrote it.")
    return results


def images_of(results, metric):
    """Returns the digest of the images on which a metric was measured. Returns None if an older version kept none.

    `results` is the content of results.json. A metric that needs no images, as `parameters`, belongs to the test set.
    """
    part = re.match("(?:best_)?(train|validation)_(?!seconds)", metric)
    return results.get(
        {"train": "dataset_sha256", "validation": "dataset_validation_sha256"}[part[1]]
        if part
        else "dataset_test_sha256"
    )


def is_percent(metric):
    """Returns whether a metric is printed in percent."""
    return "accuracy" in metric


def metric_of(results, metric):
    """Returns a metric of a run as a float, an accuracy in percent. None stands for NaN and for other types."""
    value = results.get(metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value * (100.0 if is_percent(metric) else 1.0)


def missing_metric(metric, runs):
    """Returns a message if no element of `runs`, a list of results, has the metric. "" if one has it, or for no runs.

    A null in results.json counts: the run has the metric, and its value is NaN.
    """
    items = [item for results in runs for item in results.items()]
    names = [name for name, value in items if value is None or type(value) in (int, float)]
    known = ", ".join(dict.fromkeys(names))
    return f"--metric={metric}: no run has it. The metrics are {known}." if runs and metric not in names else ""


def summarize(settings, metric):
    """Summarizes a metric of settings, a dict from names to lists with the results of each finished seed.

    Returns: a list of flat dicts, one for each setting. n is the number of seeds with a value. NaN becomes None.
    Raises: `mnist.Error` if a setting has runs on different data sets.
    """
    rows = []
    for name, runs in settings.items():
        datasets = sorted({(results["dataset"], (results.get("dataset_sha256") or "")[:8]) for results in runs})
        if len(datasets) > 1:
            names = sorted({dataset for dataset, _ in datasets})
            found = " and ".join(names if len(names) > 1 else [f"{dataset} ({digest})" for dataset, digest in datasets])
            raise Error(f"{name} mixes runs on {found}: give the sweep one, as -- --dataset=NAME or --data_dir.")
        columns = [[metric_of(results, key) for results in runs] for key in (metric, "train_seconds")]
        values, seconds = ([value for value in column if value is not None] for column in columns)
        n, *numbers = (None if math.isnan(number) else number for number in summarize_values(values))
        keys = [f"{metric}_{key}{'_percent' * is_percent(metric)}" for key in ("mean", "std", "low", "high")]
        median = statistics.median(seconds) if seconds else None
        rows.append({"setting": name, "n": n, **dict(zip(keys, numbers, strict=True)), "train_seconds_median": median})
    return rows


def format_summary(rows, metric, lowest):
    """Returns the rows of `summarize` as text: the best mean first and starred, settings without a value last.

    `lowest` is whether the lowest mean is the best.
    """
    sign = -1 if lowest else 1
    rows = [tuple(row.values()) for row in rows]
    best, *_ = rows = sorted(rows, key=lambda row: -math.inf if row[2] is None else sign * row[2], reverse=True)
    width = max(len(name) for name, *_ in rows) + 2
    title = metric.replace("_", " ") + ", %" * is_percent(metric)
    wide = max(24, len(title) + 2)
    text = f"{'setting':<{width}}{'n':>5}{title:>{wide}}{'95 % interval':>26}{'training, s':>14}\n"
    for name, n, *numbers, seconds in rows:
        mean, std, low, high = ("-" if x is None else f"{x:{'.3f' if is_percent(metric) else '.5g'}}" for x in numbers)
        spread, interval = (mean, "-") if n < 2 else (f"{mean} ± {std}", f"{low} .. {high}")
        mark = " *" if len(rows) > 1 and n and numbers[0] == best[2] else ""
        text += f"{name + mark:<{width}}{n:5}{spread:>{wide}}{interval:>26}"
        text += f"{'-' if seconds is None else f'{seconds:.1f}':>14}\n"
    return text
