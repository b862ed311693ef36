"""What runs gave: results.json read with care, means and intervals of a metric, the table of a sweep."""

import csv
import io
import json
import math
import os
import statistics
import typing

from mnist import Error, files
from mnist.files import without_nan
from mnist.metrics import is_lower_better

import numpy as np
import scipy.stats

LEVEL = 0.05  # of tests, and outside of intervals


class Summary(typing.NamedTuple):
    """What `describe` returns, floats."""

    n: int
    mean: float
    std: float  # of the sample
    low: float  # of the mean's 95 % interval
    high: float


def describe(values):
    """Mean, standard deviation and 95 % interval of the mean (Student's t), NaN where there are too few values."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    std = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * std / n**0.5 if n > 1 else math.nan
    return Summary(n, mean, std, mean - half, mean + half)


def is_finished(folder):
    """Whether a run's results.json is there and of its flags: of a sweep's run, not older than its sweep.flags."""
    path, flagfile = (os.path.join(folder, name) for name in ("results.json", "sweep.flags"))
    if not os.path.isfile(path):
        return False
    return not os.path.isfile(flagfile) or os.stat(path).st_mtime_ns >= os.stat(flagfile).st_mtime_ns


def read_results(folder):
    """Reads a run's results.json. Returns: a dict, None for what is no finite number. Raises: `mnist.Error`."""
    path, results = os.path.join(folder, "results.json"), None
    try:
        with open(path) as file:
            results = without_nan(json.load(file))
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, AttributeError, RecursionError):
        pass
    if not isinstance(results, dict) or not isinstance(results.get("dataset"), str):
        raise Error(f"{path} is damaged, or not what a run wrote.")
    return results


def is_percent(metric):
    return "accuracy" in metric


def value_of(results, metric):
    """A run's `metric` as it is shown, an accuracy in percent. Returns: a float, None if there is no such number."""
    value = results.get(metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value * (100.0 if is_percent(metric) else 1.0)


def missing(metric, runs):
    """Says that none of some runs' results has `metric`, and which numbers they have; "" if it has, or there are none.

    A null counts: the run had the metric, and it was NaN.
    """
    items = [(name, results) for results in runs for name in results]
    names = list(dict.fromkeys(name for name, r in items if r[name] is None or value_of(r, name) is not None))
    return f"--metric={metric}: no run has it; there are {', '.join(names)}." if runs and metric not in names else ""


def summarize(runs, metric):
    """Returns a dict for each setting; n is the number of seeds with a value, None what too few have."""
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        finished = [results for run in runs if run.name == name and (results := run.read_results())]
        if len(datasets := sorted({results["dataset"] for results in finished})) > 1:
            raise Error(
                f"{name} mixes runs on {' and '.join(datasets)}: name one with -- --dataset=NAME or --data_dir."
            )
        columns = [[value_of(results, key) for results in finished] for key in (metric, "train_seconds")]
        values, seconds = ([value for value in column if value is not None] for column in columns)
        n, *numbers = (None if math.isnan(number) else number for number in describe(values))
        names = [f"{metric}_{key}{'_percent' * is_percent(metric)}" for key in ("mean", "std", "low", "high")]
        median = statistics.median(seconds) if seconds else None
        rows.append({"setting": name, "n": n, **dict(zip(names, numbers, strict=True)), "train_seconds_median": median})
    return rows


def format_table(rows, metric):
    """The rows of `summarize` as text, the best mean first and marked with a star; without a result, last."""
    sign = -1 if is_lower_better(metric) else 1
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


def write_csv(path, rows):
    """Writes a list of dicts; the columns are all their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomically(path, text.getvalue())
