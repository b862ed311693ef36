"""Evaluates a run, exactly, over every example: python -m mnist.evaluate --workdir=runs/NAME"""

from mnist import Error, data, finished
from mnist.command import run
from mnist.metrics import compute_metrics, count_confusions
from mnist.model import make_predict_logits
from mnist.settings import Setting, local_path

import numpy as np


class Evaluate:
    """What is evaluated."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    data_dir = Setting(None, "Folder of other data to evaluate on. Default: the run's own.", kind=local_path)
    dataset = Setting(None, "Other data set to evaluate on. Default: the run's own.", kind=data.NAMES[1:])
    eval_batch_size = Setting(500, "Images at a time; has no part in the result.", low=1)


_MAX_SHOWN = 20  # classes whose confusions fit on a screen
_MAX_NAME = 24  # characters of a name


def format_report(matrix, classes):
    """Precision, recall and F1 of each class that has test images, and their averages, as scikit-learn prints them.

    Its own averages count classes without test images as failures, or it leaves out the accuracy.

    Args:
      matrix: counts `[classes, classes]` (row: label, column: prediction).
      classes: their names.
    """
    support, hits = matrix.sum(axis=1), matrix.diagonal()
    precision, recall = (hits / np.maximum(counts, 1) for counts in (matrix.sum(axis=0), support))
    f1 = 2 * hits / np.maximum(matrix.sum(axis=0) + support, 1)
    there, total = np.flatnonzero(support), support.sum()
    scores = np.stack([precision, recall, f1])[:, there]  # [3, classes that there are]
    names = [_shorten(classes[i]) for i in there]
    width = max(len("weighted avg"), *map(len, names))

    def row(name, values, count):
        return f"{name:>{width}}  " + " ".join(f"{value:>9}" for value in values) + f" {count:>9}"

    def numbers(values):
        return [f"{value:.4f}" for value in values]

    return "\n".join(
        [
            row("", ("precision", "recall", "f1-score"), "support") + "\n",
            *(row(name, numbers(scores[:, i]), support[there[i]]) for i, name in enumerate(names)),
            "",
            row("accuracy", ["", "", *numbers([hits.sum() / total])], total),
            row("macro avg", numbers(scores.mean(axis=1)), total),
            row("weighted avg", numbers(scores @ support[there] / total), total) + "\n",
        ]
    )


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


def main(options):
    trained = finished.load(options.workdir)
    classes = trained.classes
    if options.dataset or options.data_dir:
        other = data.load(options.dataset or "auto", options.data_dir)
    else:
        other = trained.data
    test = other.test
    if test.labels.max() >= len(classes):
        raise Error(
            f"the model of {options.workdir} knows {len(classes)} classes, {other.name} has test labels up to "
            f"{test.labels.max()}."
        )
    logits = make_predict_logits(trained.model, options.eval_batch_size)(test.images).numpy()
    metrics = compute_metrics(logits, test.labels)
    matrix = count_confusions(test.labels, logits.argmax(axis=1), len(classes))
    print(f"step {trained.step}, {len(test.labels):,} test images")
    print(f"loss {metrics['loss']:.6f}, accuracy {metrics['accuracy']:.4f}\n")
    print(format_report(matrix, classes))
    if missing := [_shorten(name) for name, row in zip(classes, matrix, strict=True) if not row.any()]:
        shown = ", ".join(missing[:_MAX_SHOWN]) + ", ..." * (len(missing) > _MAX_SHOWN)
        print(f"without test images, in no average: {shown}\n")
    print(format_confusions(matrix, classes))


if __name__ == "__main__":
    run(main, Evaluate)
