"""Evaluates a run, exactly, over every example: python -m mnist.evaluate --workdir=runs/NAME"""

from mnist import data, finished
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


def main(options):
    trained = finished.load(options.workdir)
    classes = trained.classes
    if options.dataset or options.data_dir:
        other = data.load(options.dataset or "auto", options.data_dir)
    else:
        other = trained.data
    trained.check_labels(other)
    test = other.test
    logits = make_predict_logits(trained.model, options.eval_batch_size)(test.images).numpy()
    metrics, predictions = compute_metrics(logits, test.labels), logits.argmax(axis=1)
    matrix = count_confusions(test.labels, predictions, len(classes))
    print(f"step {trained.step}, {len(test.labels):,} test images")
    print(f"loss {metrics['loss']:.6f}, accuracy {metrics['accuracy']:.4f}\n")
    print(format_report(test.labels, predictions, classes))
    if missing := [_shorten(name) for name, row in zip(classes, matrix, strict=True) if not row.any()]:
        shown = ", ".join(missing[:_MAX_SHOWN]) + ", ..." * (len(missing) > _MAX_SHOWN)
        print(f"without test images, in no average: {shown}\n")
    print(format_confusions(matrix, classes))


if __name__ == "__main__":
    run(main, Evaluate)
