"""The loss and accuracy curves of one run or of several, and the reliability diagram, with matplotlib."""

import copy
import io
import warnings

from mnist.summaries.canvas import cut

import numpy as np
from PIL import Image

_MAX_POINTS = 100  # of the loss by step, because a longer curve is a band of noise
_MAX_NAME = 190  # pixels of the name of a run


def draw_curves(runs):
    """Draws loss and accuracy of training and validation over the steps, with several runs in the same charts.

    Early accuracies may lie below the chart, so that the later ones fill it.

    Args:
      runs: list of dicts, the `history` of a `finished.Run`. For several runs a dict with a history for each name, or
        a pair of the history and `batch_losses()`. An entry may lack any metric.

    Returns: a `PIL.Image.Image`.
    """
    import matplotlib.figure  # slow to import, and most runs draw no curve

    runs = runs if isinstance(runs, dict) else {"": runs}
    several = len(runs) > 1
    height = max(3.6, 0.22 * len(runs) + 0.6)  # inches, enough for the legend
    figure = matplotlib.figure.Figure(figsize=(10, height), dpi=120, layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    losses, accuracies = [], []  # pairs of arrays: steps, values
    lines, names, shared = [], [], {}  # of the legend, where `shared` has one line for all runs
    for i, (name, run) in enumerate(runs.items()):
        history, batch_losses = run if isinstance(run, tuple) else (run, None)
        colour = f"C{i}" if len(runs) <= 10 else matplotlib.colormaps["turbo"](0.05 + 0.9 * i / len(runs))
        for axes, metric, drawn in ((loss_axes, "loss", losses), (accuracy_axes, "accuracy", accuracies)):
            train, validation = (_points(history, f"{part}_{metric}") for part in ("train", "validation"))
            style = {"marker": "o", "markersize": 3, "linewidth": 1.3}
            (shared["train"],) = axes.plot(*train, color=colour, linestyle="--" if several else "-", **style)
            (line,) = axes.plot(*validation, color=colour if several else "C1", **style)
            drawn += [train, validation]
        lines.append(line)
        names.append(cut(name, _MAX_NAME) if several else "validation")
        if batch_losses is not None:
            points = _smooth(*batch_losses)
            label = "train, by step" if len(points[0]) == len(batch_losses[0]) else "train, by step, smoothed"
            (shared[label],) = loss_axes.plot(*points, color=colour, alpha=0.4, linewidth=1, zorder=1)
    if several:
        shared = {label: copy.copy(line) for label, line in shared.items()}
        for line in shared.values():
            line.set_color("grey")
    for axes, metric in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
    _scale_losses(loss_axes, losses)
    _limit_accuracies(accuracy_axes, accuracies)
    legend = figure.legend([*lines, *shared.values()], [*names, *shared], loc="outside right upper", fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # the name of a folder may contain dollars
    return _render(figure)


def draw_reliability(result):
    """Draws the reliability diagram of a `metrics.Calibration` (Guo et al., arXiv:1706.04599, figure 1).

    Red marks the gap between the accuracy in a bin and its mean confidence. The calibration error is the mean of the
    gaps. Grey bars are square roots of the numbers of images, so that few images stay visible.
    """
    import matplotlib.figure  # slow to import

    figure = matplotlib.figure.Figure(figsize=(3.5, 4.3), dpi=100, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(5, 1))
    bars = {"x": np.arange(len(result.count)) / len(result.count), "width": 1 / len(result.count), "align": "edge"}
    above.bar(height=result.accuracy, color="cornflowerblue", edgecolor="navy", **bars)
    gaps = result.confidence - result.accuracy
    above.bar(height=gaps, bottom=result.accuracy, color="lightcoral", edgecolor="firebrick", **bars)
    above.plot([0, 1], [0, 1], color="black", linewidth=1)  # accuracy equals confidence
    above.set_title(f"expected calibration error {result.ece:.4f} (red: the gap)", fontsize="small")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    below.bar(height=np.sqrt(result.count), color="grey", **bars)
    below.set(yticks=[], xlabel="confidence", ylabel="images")
    return _render(figure)


def _render(figure):
    """Returns a figure of matplotlib as a `PIL.Image.Image`."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib draws a box for a character that its font lacks
        figure.savefig(file, format="png")
    return Image.open(file)


def _points(history, key):
    """Returns steps and values, float64 `[N]` each, of the entries that have the key."""
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return np.array(points, np.float64).reshape(-1, 2).T


def _smooth(steps, values):
    """Averages steps and values over consecutive steps, so that at most `_MAX_POINTS` remain."""
    starts = np.arange(0, len(steps), max(1, -(-len(steps) // _MAX_POINTS)))
    counts = np.diff([*starts, len(steps)])
    return [np.add.reduceat(np.asarray(x, np.float64), starts) / counts for x in (steps, values)]


def _scale_losses(axes, curves):
    """Sets a log scale, unless a value is 0 or less."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = np.concatenate([line.get_ydata() for line in axes.lines])
    if np.isfinite(values).any() and not (values <= 0).any():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        # The loss of single batches may be so small that it would take half of the picture.
        lowest = np.nanmin(np.concatenate([values for _, values in curves] or [values]), initial=np.inf)
        if lowest > 4 * axes.get_ylim()[0] and lowest < np.inf:
            axes.set_ylim(bottom=lowest / 4)


def _limit_accuracies(axes, curves):
    """Cuts off accuracies of the first quarter of the steps that would take more than half of the chart."""
    early = np.concatenate([values[steps < steps.max(initial=0) / 4] for steps, values in curves])
    late = np.concatenate([values[steps >= steps.max(initial=0) / 4] for steps, values in curves])
    if len(late) > 2 * len(curves) and early.size:  # a chart of few points shows all of them
        low, high = np.nanmin(late), np.nanmax([*early, *late])
        margin = max(0.05 * (high - low), 1e-3)
        if np.nanmin(early) < low - (high - low):
            axes.set_ylim(low - margin, high + margin)
