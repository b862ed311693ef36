"""Evaluations as text: one run by class, or several runs side by side."""

from mnist.metrics.robustness import CORRUPTIONS

import numpy as np

_MAX_SHOWN = 20  # classes whose confusion matrix fits on a screen
_MAX_NAME = 24  # characters of a name


def format_confusions(matrix, classes):
    """Returns the confusion matrix of up to 20 classes, or the most frequent confusions of more, as text."""
    names = [_shorten(name) for name in classes]
    width = max(map(len, names))
    if len(matrix) <= _MAX_SHOWN:
        counts = [" ".join(f"{n:5d}" for n in row) for row in matrix]
        rows = [f"{name:>{width}}: {row}" for name, row in zip(names, counts, strict=True)]
        return "\n".join(["confusion matrix (row: label, column: prediction)", *rows])
    wrong = matrix - np.diag(matrix.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_SHOWN]
    pairs = [divmod(int(cell), len(matrix)) for cell in cells]
    rows = [f"{wrong[i, j]:5d}  {names[i]:>{width}} -> {names[j]}" for i, j in pairs if wrong[i, j]]
    return "\n".join(["most frequent confusions (count, label -> prediction)", *rows])


def _shorten(name):
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 10]}...{name[-7:]}"


def format_evaluation(found):
    """Returns all results of one `evaluate.Evaluation` as text."""
    from sklearn.metrics import classification_report

    labels, matrix = found.labels, found.confusion_matrix
    low, high = found.accuracy_interval
    there = np.unique(labels)  # the averages are over the classes with test images
    names = [_shorten(found.classes[label]) for label in there]
    options = {"labels": there, "target_names": names, "digits": 4, "zero_division": 0}
    lines = [
        f"step {found.step}, {len(labels):,} test images",
        f"loss {found.loss:.6f}, accuracy {found.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})",
        f"expected calibration error {found.calibration.ece:.4f}",
        *(f"{name} {value:.6g}" for name, value in found.own_metrics.items()),
        f"\n{classification_report(labels, found.predictions, **options)}",
    ]
    if missing := [_shorten(name) for name, row in zip(found.classes, matrix, strict=True) if not row.any()]:
        shown = ", ".join(missing[:_MAX_SHOWN]) + ", ..." * (len(missing) > _MAX_SHOWN)
        lines.append(f"without test images, in no average: {shown}\n")
    lines += [format_confusions(matrix, found.classes), f"\n{format_calibration(found.calibration)}"]
    if found.robustness:
        lines.append(f"\n{format_robustness([found])}")
    return "\n".join(lines)


def format_calibration(result):
    """Returns the bins of a `metrics.Calibration` that contain images, as a table."""
    bins = len(result.count)
    rows = [["probability of the prediction", "mean", "accuracy", "images"]]
    for i in np.flatnonzero(result.count):
        means = [f"{result.confidence[i]:.4f}", f"{result.accuracy[i]:.4f}"]
        rows.append([f"{i / bins:.3f} to {(i + 1) / bins:.3f}", *means, f"{result.count[i]:,}"])
    return _align(rows)


def format_table(evaluations):
    """Returns a table of several `evaluate.Evaluation`, with a row for each run."""
    own = list(dict.fromkeys(name for found in evaluations for name in found.own_metrics))
    rows = [["run", "step", "images", "loss", "accuracy", "95 % interval", "ECE", *own]]
    for found in evaluations:
        numbers = [str(found.step), f"{len(found.labels):,}", f"{found.loss:.6f}", f"{found.accuracy:.4f}"]
        interval = "{:.4f} to {:.4f}".format(*found.accuracy_interval)
        values = [f"{found.own_metrics[name]:.6g}" if name in found.own_metrics else "-" for name in own]
        rows.append([found.workdir, *numbers, interval, f"{found.calibration.ece:.4f}", *values])
    return _align(rows)


def format_robustness(evaluations):
    """Returns a table of accuracy and loss under each of `CORRUPTIONS`, with a column for each run."""
    names = [found.workdir for found in evaluations]  # shortened to their ends, because these differ
    names = [name if len(name) <= _MAX_NAME else f"...{name[3 - _MAX_NAME :]}" for name in names]
    rows = [["accuracy (loss)", *names]]
    for i, corruption in enumerate(CORRUPTIONS):
        cells = [found.robustness[i] for found in evaluations]
        rows.append([str(corruption), *(f"{cell['accuracy']:.4f} ({cell['loss']:.4f})" for cell in cells)])
    return _align(rows)


def _align(rows):
    """Returns a table of texts, with the first column on the left and all others on the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
