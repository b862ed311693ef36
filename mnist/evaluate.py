"""Evaluates a run, exactly, over every example: python -m mnist.evaluate --workdir=runs/NAME

With several --workdir: runs side by side.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys

from mnist import Error, data, finished
from mnist.cli import run
from mnist.files import write_errors
from mnist.metrics import (
    Calibration,
    calibration,
    compute_metrics,
    count_confusions,
    format_evaluation,
    format_robustness,
    format_table,
    measure_robustness,
    wilson_interval,
)
from mnist.model import make_predict_logits
from mnist.settings import Setting, local_path
from mnist.summaries import draw_reliability

import numpy as np
from absl import logging


class Evaluate:
    """What is evaluated."""

    workdir = Setting(None, "Folder of a run; given several times: runs side by side.", kind=[local_path])
    checkpoint = finished.which_checkpoint()
    data_dir = Setting(None, "Folder of other data to evaluate on. Default: the run's own.", kind=local_path)
    dataset = Setting(None, "Other data set to evaluate on. Default: the run's own.", kind=data.NAMES[1:])
    eval_batch_size = Setting(500, "Images at a time; has no part in the result.", low=2)
    robustness = Setting(
        False, "Also evaluate shifted, rotated, noisy and blurred images: 25 times the time, 10 s of MNIST."
    )
    reliability = Setting(None, "PNG file for the reliability diagram of a run.", kind=local_path)
    json = Setting(False, "Print a JSON object instead, of several runs a list; null for what is not a number.")


@dataclasses.dataclass
class Evaluation:
    """What was found of a run on the test images of a data set.

    Attributes:
      workdir, step: the run's folder as it was given, and the step of its checkpoint.
      dataset: the name of the data set. test_sha256: the digest of its test images and labels.
      classes: the names of the classes.
      labels, predictions: integers `[N]`.
      loss: mean cross-entropy. accuracy: in [0, 1]. accuracy_interval: its two ends, `wilson_interval`.
      calibration: a `metrics.Calibration`.
      own_metrics: a dict of numbers, the step's `extra_metrics`.
      robustness: as of `measure_robustness`; None if it was not asked for.
    """

    workdir: str
    step: int
    dataset: str
    test_sha256: str
    classes: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    calibration: Calibration
    own_metrics: dict
    robustness: list | None

    @property
    def confusion_matrix(self):
        """Counts, int64 `[classes, classes]`, row: label, column: prediction."""
        return count_confusions(self.labels, self.predictions, len(self.classes))


def evaluate(trained, dataset, batch_size=500, robustness=False):
    """Evaluates a `finished.Run` on the test images of a `data.Dataset`. Returns: an `Evaluation`.

    Raises: `mnist.Error` for labels that the model does not know.
    """
    trained.check_labels(dataset)
    images, labels = dataset.test
    predict_logits = make_predict_logits(trained.model, batch_size)
    logits = predict_logits(images).numpy()
    predictions = logits.argmax(axis=1)
    return Evaluation(
        workdir=trained.workdir,
        step=trained.step,
        dataset=dataset.name,
        test_sha256=dataset.test.digest(),
        classes=trained.classes,
        labels=labels,
        predictions=predictions,
        **compute_metrics(logits, labels),
        accuracy_interval=wilson_interval((predictions == labels).sum(), len(labels)),
        calibration=calibration(logits, labels),
        own_metrics=trained.own_metrics(images, labels, logits),
        robustness=measure_robustness(predict_logits, images, labels) if robustness else None,
    )


def as_json(found):
    """An `Evaluation` as a dict that `json.dumps` takes; None for what is not a number.

    Of a class without test images precision, recall and F1 are None; of one that is never predicted the precision is 0,
    as in the text.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers, own = range(len(found.classes)), ("precision", "recall", "f1", "images")
    scores = precision_recall_fscore_support(found.labels, found.predictions, labels=numbers, zero_division=0)
    values = {name: getattr(found, name) for name in ("workdir", "step", "dataset", "test_sha256")}
    values |= {"images": len(found.labels), "loss": found.loss, "accuracy": found.accuracy}
    values |= {"accuracy_interval": found.accuracy_interval, "ece": found.calibration.ece}
    values["calibration"] = {name: getattr(found.calibration, name) for name in ("confidence", "accuracy", "count")}
    values["own_metrics"] = found.own_metrics
    values["classes"] = [
        {"name": name} | dict(zip(own, row if row[-1] else (None, None, None, 0), strict=True))
        for name, *row in zip(found.classes, *scores, strict=True)
    ]
    values["confusion_matrix"] = found.confusion_matrix
    if found.robustness:
        values["robustness"] = found.robustness
    return _plain(values)


def _plain(value):
    """A value in Python's own types, with None for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _evaluate_all(options):
    # All are loaded first, so that a mistake in the last name is said at once.
    runs = [finished.load(workdir, options.checkpoint) for workdir in options.workdir or [None]]
    named = options.dataset or options.data_dir
    other = data.load(options.dataset or "auto", options.data_dir) if named else None
    evaluations = []
    while runs:  # each leaves the list, and the memory with its data
        trained = runs.pop(0)
        evaluations.append(evaluate(trained, other or trained.data, options.eval_batch_size, options.robustness))
    if len({found.test_sha256 for found in evaluations}) > 1:
        names = ", ".join(dict.fromkeys(found.dataset for found in evaluations))
        logging.warning("These runs have different test images (%s): name one --data_dir or --dataset for all.", names)
    return evaluations


def main(options):
    if options.reliability and len(options.workdir or []) > 1:
        raise Error(f"--reliability={options.reliability} is a picture of one run: give one --workdir, not several.")
    if options.reliability and not options.reliability.lower().endswith(".png"):
        raise Error(f"--reliability={options.reliability} is no name of a PNG file: let it end in .png.")
    # Code of a user, the module of a model, may print when it is imported.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        evaluations = _evaluate_all(options)
    if options.reliability:
        with write_errors(f"write {options.reliability}"):
            os.makedirs(os.path.dirname(options.reliability) or ".", exist_ok=True)
            draw_reliability(evaluations[0].calibration).save(options.reliability)
    if options.json:
        values = [as_json(found) for found in evaluations]
        print(json.dumps(values if len(values) > 1 else values[0], allow_nan=False))
        return
    print(format_evaluation(evaluations[0]) if len(evaluations) == 1 else format_table(evaluations))
    if len(evaluations) > 1 and options.robustness:
        print(f"\n{format_robustness(evaluations)}")
    if options.reliability:
        print(f"\nwrote {options.reliability}")


if __name__ == "__main__":
    run(main, Evaluate)
