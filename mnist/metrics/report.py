"""What was found of runs: of one by class, of several side by side, as text; the reliability diagram."""

from mnist.metrics.robustness import CORRUPTIONS

import numpy as np

_MAX_SHOWN = 20  # classes whose confusions fit on a screen
_MAX_NAME = 24  # characters of a name


def format_report(labels, predictions, classes):
    """Precision, recall and F1 of each class that has test images, and their averages over these, as text."""
    from sklearn.metrics import classification_report

    there = np.unique(labels)
    names = [_shorten(classes[label]) for label in there]
    return classification_report(labels, predictions, labels=there, target_names=names, digits=4, zero_division=0)


def format_confusions(matrix, classes):
    """The confusion matrix of few classes, or the most frequent confusions of many."""
    names = [_shorten(name) for name in classes]
    width = max(map(len, names))
    if len(matrix) <= _MAX_SHOWN:
        rows = [
            f"{name:>{width}}: " + " ".join(f"{n:5d}" for n in row) for name, row in zip(names, matrix, strict=True)
        ]
        return "\n".join(["confusion matrix (row: label, column: prediction)", *rows])
    wrong = matrix - np.diag(matrix.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_SHOWN]
    pairs = [divmod(int(cell), len(matrix)) for cell in cells]
    rows = [f"{wrong[i, j]:5d}  {names[i]:>{width}} -> {names[j]}" for i, j in pairs if wrong[i, j]]
    return "\n".join(["most frequent confusions (count, label -> prediction)", *rows])


def _shorten(name):
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 10]}...{name[-7:]}"


def format_evaluation(found):
    """All of one `evaluate.Evaluation`."""
    matrix = found.confusion_matrix
    low, high = found.accuracy_interval
    lines = [
        f"step {found.step}, {len(found.labels):,} test images",
        f"loss {found.loss:.6f}, accuracy {found.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})",
        f"expected calibration error {found.calibration.ece:.4f}",
        *(f"{name} {value:.6g}" for name, value in found.own_metrics.items()),
        f"\n{format_report(found.labels, found.predictions, found.classes)}",
    ]
    if missing := [_shorten(name) for name, row in zip(found.classes, matrix, strict=True) if not row.any()]:
        shown = ", ".join(missing[:_MAX_SHOWN]) + ", ..." * (len(missing) > _MAX_SHOWN)
        lines.append(f"without test images, in no average: {shown}\n")
    lines += [format_confusions(matrix, found.classes), f"\n{format_calibration(found.calibration)}"]
    if found.robustness:
        lines.append(f"\n{format_robustness([found])}")
    return "\n".join(lines)


def format_calibration(result):
    """The bins of a `metrics.Calibration` that hold images, as a table."""
    bins = len(result.count)
    rows = [["probability of the prediction", "mean", "accuracy", "images"]]
    for i in np.flatnonzero(result.count):
        means = [f"{result.confidence[i]:.4f}", f"{result.accuracy[i]:.4f}"]
        rows.append([f"{i / bins:.3f} to {(i + 1) / bins:.3f}", *means, f"{result.count[i]:,}"])
    return _align(rows)


def format_table(evaluations):
    """Several of `evaluate.Evaluation` side by side, a row for each run."""
    own = list(dict.fromkeys(name for found in evaluations for name in found.own_metrics))
    rows = [["run", "step", "images", "loss", "accuracy", "95 % interval", "ECE", *own]]
    for found in evaluations:
        numbers = [str(found.step), f"{len(found.labels):,}", f"{found.loss:.6f}", f"{found.accuracy:.4f}"]
        interval = "{:.4f} to {:.4f}".format(*found.accuracy_interval)
        values = [f"{found.own_metrics[name]:.6g}" if name in found.own_metrics else "-" for name in own]
        rows.append([found.workdir, *numbers, interval, f"{found.calibration.ece:.4f}", *values])
    return _align(rows)


def format_robustness(evaluations):
    """Accuracy and loss under each of `CORRUPTIONS`, a column for each run."""
    names = [found.workdir for found in evaluations]  # their ends tell them apart
    names = [name if len(name) <= _MAX_NAME else f"...{name[3 - _MAX_NAME :]}" for name in names]
    rows = [["accuracy (loss)", *names]]
    for i, corruption in enumerate(CORRUPTIONS):
        cells = [found.robustness[i] for found in evaluations]
        rows.append([str(corruption), *(f"{cell['accuracy']:.4f} ({cell['loss']:.4f})" for cell in cells)])
    return _align(rows)


def _align(rows):
    """A table of texts, the first column to the left and all others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
