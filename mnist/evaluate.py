"""Evaluates a run, exactly, on every test image: python -m mnist.evaluate --workdir=runs/NAME

With several --workdir it prints the runs side by side. --plots=FOLDER draws a run: the curves, five test images, the
worst mistakes, the confusion matrix, the accuracy by class and the filters. Of several runs it draws the curves alone.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys

from mnist import Error, data, finished
from mnist.cli import run
from mnist.files import write_errors
from mnist.machine import check_portable, portable_operations, restart_portable
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
from mnist.summaries import draw_curves, draw_reliability, draw_run, save_pictures

import numpy as np
from absl import logging


class Evaluate:
    """The flags of this command."""

    workdir = Setting(None, "Folder of a run. Given several times: runs side by side.", kind=[local_path])
    checkpoint = finished.which_checkpoint()
    data_dir = Setting(
        None,
        "Folder or file with other data to evaluate on, perhaps a test set alone. Default: the run's own.",
        kind=local_path,
    )
    dataset = Setting(None, "Other data set to evaluate on. Default: the run's own.", kind=data.NAMES[1:])
    eval_batch_size = Setting(500, "Images at a time. The result does not depend on it.", low=2)
    robustness = Setting(False, "Also evaluate shifted, rotated, noisy and blurred images, for 25 times the time.")
    reliability = Setting(None, "PNG file for the reliability diagram of a run.", kind=local_path)
    plots = Setting(None, "Folder for PNG files of a run, or of the curves of several runs.", kind=local_path)
    portable = Setting(False, "Compute the same bits on any x86-64 processor with AVX2, as --portable of mnist.train.")
    json = Setting(False, "Print a JSON object, or a list of them for several runs. NaN becomes null.")


@dataclasses.dataclass
class Evaluation:
    """The evaluation of a run on the test images of a data set.

    Attributes:
      workdir: folder of the run, as given. step: step of its checkpoint.
      dataset: name of the data set. test_sha256: digest of its test images and labels.
      classes: names of the classes.
      labels, predictions: integers `[N]`.
      loss: mean cross-entropy.
      accuracy: share in [0, 1].
      accuracy_interval: both ends of its 95 % interval, by `wilson_interval`.
      calibration: a `metrics.Calibration`.
      own_metrics: a dict of numbers, from `extra_metrics` of the step.
      robustness: the rows of `measure_robustness`, or None.
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
        """The counts, int64 `[classes, classes]`, with a row for each label and a column for each prediction."""
        return count_confusions(self.labels, self.predictions, len(self.classes))


def evaluate(trained, dataset, batch_size=500, robustness=False):
    """Evaluates a `finished.Run` on the images of a `data.Dataset` or `data.TestSet`. Returns: an `Evaluation`.

    Raises: `mnist.Error` for a label without a logit of the model.
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
    """Returns an `Evaluation` as a dict for `json.dumps`, with None in place of NaN and infinity.

    Precision, recall and F1 of a class without test images are None. The precision of a class that is never predicted
    is 0, as in the printed report.
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
    """Returns a value in types of Python, with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn_of_other_images(trained, dataset):
    """Warns if many of the test images are unlike the training images of a run, as if they were inverted."""
    images = dataset.test.images[:1000, ..., 0]
    share = np.mean(trained.look.unlike(images) > 1)
    if share > 0.25:
        found = f"{share:.0%} of the first test images of {dataset.name} are unlike the training images of"
        logging.warning("%s %s: are they inverted, transposed or of other grey levels?", found, trained.workdir)


def _evaluate_all(options):
    """Evaluates all runs. Returns: a list of `Evaluation`s, and pictures by name, {} without --plots."""
    # Loads all runs before the first evaluation, so that a wrong name is reported at once.
    runs = [finished.load(workdir, options.checkpoint) for workdir in options.workdir or [None]]
    named = options.dataset or options.data_dir
    load_test = functools.cache(data.load_test)
    evaluations, curves, drawn = [], {}, {}
    while runs:  # pops each run, because it holds its data in memory
        trained = runs.pop(0)
        other = named and load_test(options.dataset or "auto", options.data_dir, trained.classes)
        dataset = other or trained.data
        if other:
            _warn_of_other_images(trained, dataset)
        evaluations.append(evaluate(trained, dataset, options.eval_batch_size, options.robustness))
        if options.plots:
            curves[trained.workdir] = (trained.history, trained.batch_losses())
    if len({found.test_sha256 for found in evaluations}) > 1:
        names = ", ".join(dict.fromkeys(found.dataset for found in evaluations))
        logging.warning("These runs have different test images (%s): name one --data_dir or --dataset for all.", names)
    if len(curves) > 1:
        drawn = {"curves_of_all": draw_curves(curves)}
    elif curves:
        drawn = draw_run(trained.model, dataset.test, trained.classes, curves)
    return evaluations, drawn


def main(options):
    if options.portable:
        restart_portable()
        check_portable()
    if options.reliability and len(options.workdir or []) > 1:
        raise Error(f"--reliability={options.reliability} is a picture of one run: give one --workdir, not several.")
    if options.reliability and not options.reliability.lower().endswith(".png"):
        raise Error(f"--reliability={options.reliability} does not end in .png, as the name of a PNG file does.")
    # The user's module of a model may print when it is imported, and stdout is for JSON.
    with (
        contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext(),
        portable_operations() if options.portable else contextlib.nullcontext(),
    ):
        evaluations, drawn = _evaluate_all(options)
    written = save_pictures(drawn, options.plots) if drawn else []
    if options.reliability:
        with write_errors(f"write {options.reliability}"):
            os.makedirs(os.path.dirname(options.reliability) or ".", exist_ok=True)
            draw_reliability(evaluations[0].calibration).save(options.reliability)
        written.append(options.reliability)
    if options.json:
        values = [as_json(found) for found in evaluations]
        print(json.dumps(values if len(values) > 1 else values[0], allow_nan=False))
        return
    print(format_evaluation(evaluations[0]) if len(evaluations) == 1 else format_table(evaluations))
    if len(evaluations) > 1 and options.robustness:
        print(f"\n{format_robustness(evaluations)}")
    if written:
        print("\n" + "\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    run(main, Evaluate)
