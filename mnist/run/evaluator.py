"""Measures the model that a step evaluates, exactly, on every example of a part of the data."""

import inspect
import time
import typing

from mnist import Error
from mnist.data import read_only
from mnist.metrics import compute_metrics
from mnist.model import IMAGE_SHAPE, keep_state, make_predict_logits
from mnist.step import check_extra_metrics

import numpy as np


class Measured(typing.NamedTuple):
    """The result of `Evaluator.measure`."""

    metrics: dict  # loss, accuracy and the step's own metrics, floats
    logits: np.ndarray  # float32 [N, classes]
    images_per_second: float  # without the step's own metrics


class Evaluator:
    """An evaluation of a `TrainStep`. The number of images in a batch does not change the result.

    The arrays that `extra_metrics` gets are read-only. `hook` is a function of the name of a method, which returns a
    context manager for its call.

    Raises: `mnist.Error` if the step's `extra_metrics` does not take images, labels and logits.
    """

    def __init__(self, step, batch_size, hook):
        self._step, self._hook = step, hook
        self._predict_logits = make_predict_logits(step.eval_model, batch_size)
        try:
            inspect.signature(step.extra_metrics).bind(None, None, None)
        except TypeError:
            raise Error(f"extra_metrics of {type(step).__name__} has to take images, labels and logits.") from None

    def trace(self):
        """Traces the evaluation, so that no clock counts the time that this takes."""
        self._predict_logits(np.zeros([1, *IMAGE_SHAPE], np.uint8))

    def measure(self, examples, part):
        """Evaluates `step.eval_model` as it is on a `data.Examples`. The part is "validation" or "test"."""
        self.trace()
        start = time.perf_counter()
        logits = self._predict_logits(examples.images).numpy()
        metrics = compute_metrics(logits, examples.labels)
        images_per_second = len(logits) / (time.perf_counter() - start)
        view = self._step.view
        view.part = part
        try:
            with keep_state(self._step.eval_model), self._hook("extra_metrics"):
                own = check_extra_metrics(self._step.extra_metrics(*map(read_only, (*examples, logits))), metrics)
        finally:
            view.part = "train"
        return Measured(metrics | own, logits, images_per_second)
